/* One pass over the numbers of layers on a CPU: gradient, weights and what the optimizer keeps, each read once. */

#include "fused.h"

#include <stdlib.h>

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

/* Some of the numbers of a layer or a vector: [start, start + count) of the one at index `of`. */
typedef struct {
    int64_t of, start, count;
} Piece;

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

/* How many of the units whose first number lies in [start, stop) have a gradient of zeros alone. */
static double zero_rows(const Layer *layer, int64_t start, int64_t stop) {
    const int64_t each = layer->per_unit;
    int64_t rows = 0;
    for (int64_t unit = (start + each - 1) / each; unit * each < stop; unit++) {
        const float *row = layer->gradient + unit * each;
        int64_t i = 0;
        while (i < each && row[i] == 0)
            i++;
        rows += i == each;
    }
    return rows;
}

static void measure_piece(const Layer *whole, const Piece *piece, Row *row) {
    Layer layer = *whole;
    layer.gradient += piece->start;
    layer.weight += piece->start;
    layer.first += piece->start;
    layer.second += piece->start;
    memset(row, 0, sizeof *row);
    int32_t top = layer.rule == ADAM     ? adam(&layer, piece->count, row)
                  : layer.rule == LINEAR ? linear(&layer, piece->count, row)
                                         : gradient_and_weight(&layer, piece->count, row);
    row->grad_max = as_float(top);
    row->whole_sq = row->grad_sq;
    if (top >= 0x7f800000)
        without_nonfinite(&layer, piece->count, row);
    row->grad_zero_rows = zero_rows(whole, piece->start, piece->start + piece->count);
}

/* Adds what a piece gave to the row of its layer; in order of the pieces, so that threads do not change a sum. */
static void add(Row *row, const Row *of_piece) {
    double largest = row->grad_max > of_piece->grad_max ? row->grad_max : of_piece->grad_max;
    for (size_t i = 0; i < sizeof *row / sizeof(double); i++)
        ((double *)row)[i] += ((const double *)of_piece)[i];
    row->grad_max = largest;
}

EACH_PROCESSOR
static double sum_of_squares(const float *numbers, int64_t count) {
    double total = 0;
    for (int64_t at = 0; at < count; at += BLOCK) {
        int64_t length = count - at < BLOCK ? count - at : BLOCK;
        const float *x = numbers + at;
        float square = 0;
        for (int64_t i = 0; i < length; i++)
            square += x[i] * x[i];
        total += square;
    }
    return total;
}

/* What the threads share: layers or vectors, the pieces they are cut into, and what comes of each piece. */
typedef struct {
    const void *all;
    Piece *piece;
    void *found;
    int64_t pieces;
} Shared;

static int64_t length_of(int64_t size, int64_t start) {
    return size - start < PIECE ? size - start : PIECE;
}

static void measure_at(void *data, int64_t at) {
    const Shared *shared = data;
    const Piece *piece = shared->piece + at;
    measure_piece((const Layer *)shared->all + piece->of, piece, (Row *)shared->found + at);
}

static void square_at(void *data, int64_t at) {
    const Shared *shared = data;
    const Piece *piece = shared->piece + at;
    const float *numbers = ((const Vector *)shared->all)[piece->of].numbers;
    ((double *)shared->found)[at] = sum_of_squares(numbers + piece->start, piece->count);
}

/* Makes room for the pieces of things of these sizes, and for `each` bytes that come of one; 0 where there is none. */
static int cut(Shared *shared, int64_t things, int64_t (*size)(const void *, int64_t), size_t each) {
    shared->pieces = 0;
    for (int64_t of = 0; of < things; of++)
        shared->pieces += 1 + size(shared->all, of) / PIECE;
    shared->piece = malloc(shared->pieces * (sizeof(Piece) + each));
    if (!shared->piece)
        return 0;
    shared->found = shared->piece + shared->pieces;
    shared->pieces = 0;
    for (int64_t of = 0; of < things; of++) {
        int64_t whole = size(shared->all, of);
        for (int64_t start = 0; start < whole; start += PIECE)
            shared->piece[shared->pieces++] = (Piece){of, start, length_of(whole, start)};
    }
    return 1;
}

static int64_t size_of_layer(const void *all, int64_t of) {
    const Layer *layer = (const Layer *)all + of;
    return layer->units * layer->per_unit;
}

static int64_t size_of_vector(const void *all, int64_t of) {
    return ((const Vector *)all)[of].count;
}

/* What can be done by several threads: things of these sizes, of which `arrays` are read, `each` bytes come of a piece. */
typedef struct {
    int64_t (*size)(const void *, int64_t);
    int64_t arrays;
    size_t each;
    void (*piece)(void *, int64_t);
} Job;

/* Does it, where it is worth a second thread and there is room; 0 where not. What was found is to be freed. */
static int by_threads(const Job *job, int64_t things, Shared *shared, int64_t threads) {
    int64_t total = 0;
    for (int64_t of = 0; of < things; of++)
        total += job->arrays * job->size(shared->all, of);
    if (threads < 2 || total < FEWEST || !cut(shared, things, job->size, job->each))
        return 0;
    in_pieces(shared->pieces, threads, job->piece, shared);
    return 1;
}

void gradspectra_squares(int64_t vectors, const Vector *vector, double *sums, int64_t threads) {
    Shared shared = {vector, 0, 0, 0};
    memset(sums, 0, vectors * sizeof *sums);
    if (by_threads(&(Job){size_of_vector, 1, sizeof *sums, square_at}, vectors, &shared, threads)) {
        for (int64_t at = 0; at < shared.pieces; at++)
            sums[shared.piece[at].of] += ((double *)shared.found)[at];
        free(shared.piece);
        return;
    }
    for (int64_t of = 0; of < vectors; of++)
        for (int64_t start = 0; start < vector[of].count; start += PIECE)
            sums[of] += sum_of_squares(vector[of].numbers + start, length_of(vector[of].count, start));
}

void gradspectra_measure(int64_t layers, const Layer *layer, Row *row, int64_t threads) {
    Shared shared = {layer, 0, 0, 0};
    memset(row, 0, layers * sizeof *row);
    if (by_threads(&(Job){size_of_layer, 4, sizeof *row, measure_at}, layers, &shared, threads)) {
        for (int64_t at = 0; at < shared.pieces; at++)
            add(row + shared.piece[at].of, (Row *)shared.found + at);
        free(shared.piece);
        return;
    }
    for (int64_t of = 0; of < layers; of++) {
        int64_t whole = size_of_layer(layer, of);
        for (int64_t start = 0; start < whole; start += PIECE) {
            Row found;
            measure_piece(layer + of, &(Piece){of, start, length_of(whole, start)}, &found);
            add(row + of, &found);
        }
    }
}
