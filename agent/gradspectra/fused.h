/* What fused.c and samples.c share. Both are compiled on the machine they run on by compiling.py, into one library.
   Neither needs Python's headers. */

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
