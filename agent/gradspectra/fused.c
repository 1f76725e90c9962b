/* One pass over the numbers of layers on a CPU: gradient, weights and what the optimizer keeps, each read once. */

#include "fused.h"

typedef struct {
    const float *numbers;
    int64_t count;
} Vector;

enum { NO_UPDATE, ADAM, LINEAR };

typedef struct {
    const float *gradient, *weight, *first, *second;
    int64_t units, per_unit, rule;
    double scale, epsilon, decay;
} Layer;

typedef struct {
    double grad_sq, grad_max, weight_sq, update_sq, grad_l1, grad_zero_rows, grad_dot_weight, update_dot_grad;
    double first_sq, second_sum, grad_nonfinite, whole_sq;
} Row;

/* What each rule has in common; `d` is the direction of the update, d = -update / factor. */
#define GRADIENT_AND_WEIGHT                  \
    int32_t size = magnitude(g[i]);          \
    largest = size > largest ? size : largest; \
    square += g[i] * g[i];                   \
    sum += fabsf(g[i]);                      \
    dot += g[i] * w[i];                      \
    weight += w[i] * w[i];
#define DIRECTION  \
    moved += d * d; \
    along += d * g[i];
#define SUMS_OF_A_BLOCK                                                      \
    float square = 0, sum = 0, dot = 0, weight = 0, moved = 0, along = 0;    \
    float first = 0, second = 0;                                             \
    int32_t largest = 0;                                                     \
    int64_t length = count - at < BLOCK ? count - at : BLOCK;                \
    const float *g = layer->gradient + at, *w = layer->weight + at;
#define ADD_THE_BLOCK             \
    row->grad_sq += square;       \
    row->grad_l1 += sum;          \
    row->grad_dot_weight += dot;  \
    row->weight_sq += weight;     \
    row->update_sq += moved;      \
    row->update_dot_grad += along; \
    row->first_sq += first;       \
    row->second_sum += second;    \
    top = largest > top ? largest : top;

EACH_PROCESSOR
static int32_t gradient_and_weight(const Layer *layer, int64_t count, Row *row) {
    int32_t top = 0;
    for (int64_t at = 0; at < count; at += BLOCK) {
        SUMS_OF_A_BLOCK
        for (int64_t i = 0; i < length; i++) {
            GRADIENT_AND_WEIGHT
        }
        ADD_THE_BLOCK
    }
    return top;
}

/* d = m / (scale √v + ε) + λ w */
EACH_PROCESSOR
static int32_t adam(const Layer *layer, int64_t count, Row *row) {
    const float scale = layer->scale, epsilon = layer->epsilon, decay = layer->decay;
    int32_t top = 0;
    for (int64_t at = 0; at < count; at += BLOCK) {
        SUMS_OF_A_BLOCK
        const float *m = layer->first + at, *v = layer->second + at;
        for (int64_t i = 0; i < length; i++) {
            float d = m[i] / (scale * sqrtf(v[i]) + epsilon) + decay * w[i];
            GRADIENT_AND_WEIGHT
            DIRECTION
            first += m[i] * m[i];
            second += v[i];
        }
        ADD_THE_BLOCK
    }
    return top;
}

/* d = scale g + ε m + λ w: of gradient, momentum buffer and weights as much as the optimizer takes */
EACH_PROCESSOR
static int32_t linear(const Layer *layer, int64_t count, Row *row) {
    const float scale = layer->scale, epsilon = layer->epsilon, decay = layer->decay;
    int32_t top = 0;
    for (int64_t at = 0; at < count; at += BLOCK) {
        SUMS_OF_A_BLOCK
        const float *m = layer->first + at;
        for (int64_t i = 0; i < length; i++) {
            float d = scale * g[i] + epsilon * m[i] + decay * w[i];
            GRADIENT_AND_WEIGHT
            DIRECTION
        }
        ADD_THE_BLOCK
    }
    return top;
}

/* The numbers of the gradient anew, of its finite entries alone. */
static void without_nonfinite(const Layer *layer, int64_t count, Row *row) {
    int32_t top = 0;
    row->grad_sq = row->grad_l1 = row->grad_dot_weight = 0;
    for (int64_t i = 0; i < count; i++) {
        double g = layer->gradient[i];
        if (!isfinite(g)) {
            row->grad_nonfinite++;
            continue;
        }
        int32_t size = magnitude(layer->gradient[i]);
        top = size > top ? size : top;
        row->grad_sq += g * g;
        row->grad_l1 += fabs(g);
        row->grad_dot_weight += g * layer->weight[i];
    }
    row->grad_max = as_float(top);
}

static double zero_rows(const Layer *layer) {
    int64_t rows = 0;
    for (int64_t unit = 0; unit < layer->units; unit++) {
        const float *row = layer->gradient + unit * layer->per_unit;
        int64_t i = 0;
        while (i < layer->per_unit && row[i] == 0)
            i++;
        rows += i == layer->per_unit;
    }
    return rows;
}

EACH_PROCESSOR
static double sum_of_squares(const Vector *vector) {
    double total = 0;
    for (int64_t at = 0; at < vector->count; at += BLOCK) {
        int64_t length = vector->count - at < BLOCK ? vector->count - at : BLOCK;
        const float *x = vector->numbers + at;
        float square = 0;
        for (int64_t i = 0; i < length; i++)
            square += x[i] * x[i];
        total += square;
    }
    return total;
}

void gradspectra_squares(int64_t vectors, const Vector *vector, double *sums) {
    for (int64_t i = 0; i < vectors; i++)
        sums[i] = sum_of_squares(vector + i);
}

void gradspectra_measure(int64_t layers, const Layer *layer, Row *row) {
    for (; layers > 0; layers--, layer++, row++) {
        int64_t count = layer->units * layer->per_unit;
        memset(row, 0, sizeof *row);
        int32_t top = layer->rule == ADAM     ? adam(layer, count, row)
                      : layer->rule == LINEAR ? linear(layer, count, row)
                                              : gradient_and_weight(layer, count, row);
        row->grad_max = as_float(top);
        row->whole_sq = row->grad_sq;
        if (top >= 0x7f800000)
            without_nonfinite(layer, count, row);
        row->grad_zero_rows = zero_rows(layer);
    }
}
