/* What else is one pass on a CPU: the extremes of an output, the median and the drift of a sample. */

#include "fused.h"

enum { MOST = 4096 };                 /* blocks of a sample that a median is taken of at most */
enum { WIDTH = 16, ROW_BYTES = 40 }; /* of a block of a large layer's sample: numbers, and bytes of their codes */

/* Blocks of `width` numbers whose beginnings lie `stride` apart, and where those of the start lie one after another:
   numbers too where step is 0, else codes. */
typedef struct {
    const float *numbers;
    const void *start;
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

/* found: the largest finite magnitude so far, and how many numbers were not finite so far */
void gradspectra_extremes(int64_t count, const float *x, double *found) {
    int32_t top = count > 0 ? largest_of(x, count) : -1;
    if (top >= 0x7f800000) {
        top = -1;
        for (int64_t i = 0; i < count; i++) {
            int32_t size = magnitude(x[i]);
            if (size >= 0x7f800000)
                found[1]++;
            else if (size > top)
                top = size;
        }
    }
    if (top >= 0 && as_float(top) > found[0])
        found[0] = as_float(top);
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

void gradspectra_medians(int64_t samples, const Sample *sample, double *medians) {
    for (int64_t i = 0; i < samples; i++)
        medians[i] = median_of(sample + i);
}

/* Numbers of a row from `at` on, out of whole numbers of 20 bits, each so many steps: of a row first the upper 16 bits of
   each, then the lower 4, those of its second half in the upper halves of the bytes. */
static inline void decode(const uint8_t *row, int64_t width, int64_t at, int64_t length, float step, float *numbers) {
    const int16_t *upper = (const int16_t *)row + at;
    const uint8_t *lower = row + 2 * width + at;
    int64_t half = (width + 3) / 4 * 2, first = at < half ? half - at : 0;
    if (first > length)
        first = length;
    for (int64_t i = 0; i < first; i++)
        numbers[i] = step * (float)(upper[i] * 16 + (lower[i] & 15));
    for (int64_t i = first; i < length; i++)
        numbers[i] = step * (float)(upper[i] * 16 + (lower[i - half] >> 4));
}

static inline void add_drift(const float *now, const float *start, int64_t length, double *sums) {
    float square = 0, product = 0;
    for (int64_t i = 0; i < length; i++) {
        float moved = now[i] - start[i];
        square += moved * moved;
        product += start[i] * now[i];
    }
    sums[0] += square;
    sums[1] += product;
}

/* The usual sample of a large layer: blocks of WIDTH numbers, which are brought together until they fill a BLOCK. */
EACH_PROCESSOR
static void drift_of_blocks(const Sample *sample, double *sums) {
    const int64_t bytes = sample->step != 0 ? ROW_BYTES : WIDTH * (int64_t)sizeof(float);
    float now[BLOCK], start[BLOCK];
    for (int64_t block = 0; block < sample->blocks;) {
        int64_t length = 0;
        for (; length < BLOCK && block < sample->blocks; block++, length += WIDTH) {
            const uint8_t *row = (const uint8_t *)sample->start + block * bytes;
            memcpy(now + length, sample->numbers + block * sample->stride, WIDTH * sizeof(float));
            if (sample->step != 0)
                decode(row, WIDTH, 0, WIDTH, sample->step, start + length);
            else
                memcpy(start + length, row, WIDTH * sizeof(float));
        }
        add_drift(now, start, length, sums);
    }
}

EACH_PROCESSOR
static void drift_of_row(const Sample *sample, double *sums) {
    float decoded[BLOCK];
    for (int64_t at = 0; at < sample->width; at += BLOCK) {
        int64_t length = sample->width - at < BLOCK ? sample->width - at : BLOCK;
        const float *start = (const float *)sample->start + at;
        if (sample->step != 0) {
            decode(sample->start, sample->width, at, length, sample->step, decoded);
            start = decoded;
        }
        add_drift(sample->numbers + at, start, length, sums);
    }
}

/* The square of the distance from the start, and the inner product with it; of blocks of WIDTH numbers, or of one row. */
void gradspectra_drift(int64_t samples, const Sample *sample, double *sums) {
    for (int64_t i = 0; i < samples; i++, sample++, sums += 2) {
        sums[0] = sums[1] = 0;
        if (sample->width == WIDTH)
            drift_of_blocks(sample, sums);
        else
            drift_of_row(sample, sums);
    }
}
