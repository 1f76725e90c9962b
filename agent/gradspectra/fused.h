/* What fused.c, samples.c and team.c share. They are compiled on the machine they run on by compiling.py, into one
   library. None needs Python's headers. */

#include <math.h>
#include <stdint.h>
#include <string.h>

/* The best instructions of the processor are chosen when the library is loaded, where compiler and linker can. */
#if defined(CLONES) && defined(__x86_64__)
#define EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_PROCESSOR
#endif

enum { BLOCK = 2048 }; /* numbers that are summed in float32 before they are added in float64 */
enum { PIECE = 32 * BLOCK }; /* numbers that a thread takes at a time */
enum { FEWEST = 4 * PIECE }; /* numbers read that are worth the waking of a second thread */

/* Calls piece(data, at) for each `at` below `pieces`, in any order, by so many threads at most. */
void in_pieces(int64_t pieces, int64_t threads, void (*piece)(void *, int64_t), void *data);

static inline int32_t magnitude(float number) {
    int32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits & 0x7fffffff;
}

static inline float as_float(int32_t bits) {
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}
