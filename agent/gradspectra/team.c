/* Work in pieces that several threads take in turn: the threads that torch's own operations are done by. */

#include "fused.h"

/* How OpenMP's runtime begins a parallel block; what GCC and Clang make of `#pragma omp parallel` calls it. */
typedef void (*Begin)(void (*block)(void *), void *data, unsigned threads, unsigned flags);

typedef struct {
    void (*piece)(void *, int64_t);
    void *data;
    int64_t pieces, taken;
} Work;

static Begin begin = 0;

/* The runtime that torch has loaded; without one all pieces are done by the thread that calls. */
void gradspectra_team(Begin of_torch) {
    begin = of_torch;
}

static void take_pieces(void *data) {
    Work *work = data;
    for (;;) {
        int64_t at = __atomic_fetch_add(&work->taken, 1, __ATOMIC_RELAXED);
        if (at >= work->pieces)
            return;
        work->piece(work->data, at);
    }
}

void in_pieces(int64_t pieces, int64_t threads, void (*piece)(void *, int64_t), void *data) {
    Work work = {piece, data, pieces, 0};
    int64_t own = threads < pieces ? threads : pieces;
    if (begin && own > 1)
        begin(take_pieces, &work, (unsigned)own, 0);
    else
        take_pieces(&work);
}
