/* What else is one pass on a CPU: the extremes of an output, the median and the drift of a sample. */

#include "fused.h"

enum { MOST = 4096 }; /* blocks of a sample that a median is taken of at most */
enum { WIDTH = 16 };  /* numbers of a block of a large layer's sample */
enum { FEWEST_SAMPLES = 8 }; /* that are worth the waking of a second thread: 10 to 50 µs each */

/* Blocks of `width` numbers whose beginnings lie `stride` apart, and where those of the start lie one after another:
   numbers where step is 0, else the upper 16 bits of whole numbers of so many steps, whose other 4 are in `lower`, those
   of the first `half` of them in the lower half of each byte. */
typedef struct {
    const float *numbers;
    const void *start;
    const uint8_t *lower;
    int64_t half;
    double step;
    int64_t blocks, width, stride;
} Sample;

EACH_PROCESSOR
static int32_t largest_of(const float *x, int64_t count) {
    int32_t top = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t size = magnitude(x[i]);
        top = size > top ? size : top;
    }
    return top;
}

/* What the threads share: some numbers, of which a piece has `each`, and of each piece its largest finite magnitude and
   how many of its numbers are not finite. */
enum { MOST_PIECES = 256 };
typedef struct {
    const float *numbers;
    int64_t count, each;
    int32_t top[MOST_PIECES];
    int64_t lost[MOST_PIECES];
} Output;

static void extremes_at(void *data, int64_t at) {
    Output *output = data;
    const float *x = output->numbers + at * output->each;
    const int64_t left = output->count - at * output->each, count = left < output->each ? left : output->each;
    int32_t top = largest_of(x, count);
    int64_t lost = 0;
    if (top >= 0x7f800000) {
        top = -1;
        for (int64_t i = 0; i < count; i++) {
            int32_t size = magnitude(x[i]);
            if (size >= 0x7f800000)
                lost++;
            else if (size > top)
                top = size;
        }
    }
    output->top[at] = top;
    output->lost[at] = lost;
}

/* found: the largest finite magnitude so far, and how many numbers were not finite so far */
void gradspectra_extremes(int64_t count, const float *x, double *found, int64_t threads) {
    const int64_t least = (count + MOST_PIECES - 1) / MOST_PIECES;
    Output output = {.numbers = x, .count = count, .each = least > PIECE ? least : PIECE};
    const int64_t pieces = (count + output.each - 1) / output.each;
    in_pieces(pieces, count < FEWEST ? 1 : threads, extremes_at, &output);
    for (int64_t at = 0; at < pieces; at++) {
        if (output.top[at] >= 0 && as_float(output.top[at]) > found[0])
            found[0] = as_float(output.top[at]);
        found[1] += output.lost[at];
    }
}

/* Bits that are in the order of the numbers, as signed ones; a NaN lies outside of the infinities. */
static inline int32_t ordered(int32_t bits) {
    return bits >= 0 ? bits : bits ^ 0x7fffffff;
}

EACH_PROCESSOR
static int32_t at_most(const int32_t *keys, int32_t count, int32_t limit) {
    int32_t found = 0;
    for (int32_t i = 0; i < count; i++)
        found += keys[i] <= limit;
    return found;
}

/* The median, the lower of two, by halving the range that its bits lie in; NaN where there is one. */
static double median_of(const Sample *sample) {
    int32_t keys[MOST], low = INT32_MAX, high = INT32_MIN;
    int32_t count = sample->blocks < MOST ? (int32_t)sample->blocks : MOST;
    if (count < 1)
        return NAN;
    for (int32_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, sample->numbers + i * sample->stride, sizeof bits);
        keys[i] = ordered(bits);
        low = keys[i] < low ? keys[i] : low;
        high = keys[i] > high ? keys[i] : high;
    }
    if (high > 0x7f800000 || low < ~0x7f800000)
        return NAN;
    while (low < high) {
        int32_t middle = (int32_t)(low + ((int64_t)high - low) / 2);
        if (at_most(keys, count, middle) > (count - 1) / 2)
            high = middle;
        else
            low = middle + 1;
    }
    return as_float(ordered(low));
}

typedef struct {
    const Sample *sample;
    double *found;
} Samples;

static void median_at(void *data, int64_t at) {
    const Samples *samples = data;
    samples->found[at] = median_of(samples->sample + at);
}

void gradspectra_medians(int64_t samples, const Sample *sample, double *medians, int64_t threads) {
    in_pieces(samples, samples < FEWEST_SAMPLES ? 1 : threads, median_at, &(Samples){sample, medians});
}

/* The start of a sample, from its number `at` on. */
static inline void decode(const Sample *sample, int64_t at, int64_t length, float *start) {
    const int16_t *upper = (const int16_t *)sample->start + at;
    const uint8_t *lower = sample->lower + at;
    const float step = sample->step;
    const int64_t half = sample->half;
    int64_t first = half < at ? 0 : half - at < length ? half - at : length;
    for (int64_t i = 0; i < first; i++)
        start[i] = step * (float)(upper[i] * 16 + (lower[i] & 15));
    for (int64_t i = first; i < length; i++)
        start[i] = step * (float)(upper[i] * 16 + (lower[i - half] >> 4));
}

/* The square of the distance from the start, and the inner product with it; of blocks of WIDTH numbers, or of one. */
EACH_PROCESSOR
static void drift_of(const Sample *sample, double *sums) {
    const int64_t count = sample->blocks * sample->width;
    float together[BLOCK], decoded[BLOCK];
    sums[0] = sums[1] = 0;
    for (int64_t at = 0; at < count; at += BLOCK) {
        const int64_t length = count - at < BLOCK ? count - at : BLOCK;
        const float *now = sample->numbers + at, *start = (const float *)sample->start + at;
        if (sample->blocks > 1) {
            const float *block = sample->numbers + at / WIDTH * sample->stride;
            for (int64_t i = 0; i < length; i += WIDTH, block += sample->stride)
                memcpy(together + i, block, WIDTH * sizeof *block);
            now = together;
        }
        if (sample->step != 0) {
            decode(sample, at, length, decoded);
            start = decoded;
        }
        float square = 0, product = 0;
        for (int64_t i = 0; i < length; i++) {
            float moved = now[i] - start[i];
            square += moved * moved;
            product += start[i] * now[i];
        }
        sums[0] += square;
        sums[1] += product;
    }
}

static void drift_at(void *data, int64_t at) {
    const Samples *samples = data;
    drift_of(samples->sample + at, samples->found + 2 * at);
}

void gradspectra_drift(int64_t samples, const Sample *sample, double *sums, int64_t threads) {
    in_pieces(samples, samples < FEWEST_SAMPLES ? 1 : threads, drift_at, &(Samples){sample, sums});
}
