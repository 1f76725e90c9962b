"""Kernels of Triton that take all sums of all layers of a device in one pass; device_pass.py says what they read.

Each program of `sums` reads one chunk of a layer: some of its rows, or a part of one. Each of `layers` adds a layer's
chunks up, in their order and in float64. Nothing is added by atomic operations: the same numbers give the same sums.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import triton
import triton.language as tl

from gradspectra import device_table as table

WORDS = tl.constexpr(table.WORDS)
CHUNK_WORDS = tl.constexpr(table.CHUNK_WORDS)
LAYER_WORDS = tl.constexpr(table.LAYER_WORDS)
BLOCK = tl.constexpr(table.BLOCK)
ADAM = tl.constexpr(table.ADAM)
GRADIENT_ALONE = tl.constexpr(table.GRADIENT_ALONE)
NO_UPDATE = tl.constexpr(table.NO_UPDATE)


@triton.jit
def _at(words, layer, which, kind: tl.constexpr):
    """Where a layer's numbers begin: the gradient's (0), the weights' (1), or what the optimizer keeps (2 and 3)."""
    return tl.load(words + layer * WORDS + which).to(tl.pointer_type(kind))


@triton.jit
def _coefficients(words, numbers, layer):
    """scale, ε, 1 − β₁ᵗ and 1 − β₂ᵗ, as told, or from the number of steps t that lies on the device."""
    own = numbers + layer * WORDS + 8
    scale, epsilon = tl.load(own), tl.load(own + 1)
    of_first, of_second = tl.load(own + 4), tl.load(own + 5)
    step = tl.load(words + layer * WORDS + 4)
    if step != 0:
        taken = tl.load(step.to(tl.pointer_type(tl.float32))).to(tl.float64)
        of_first = 1.0 - tl.exp(taken * tl.load(own + 6))
        of_second = 1.0 - tl.exp(taken * tl.load(own + 7))
        scale = of_first / tl.sqrt(of_second)
        epsilon = epsilon * of_first
    return scale, epsilon, of_first, of_second


@triton.jit(do_not_specialize=["first_chunk", "chunks_in_all"])
def sums(
    words,
    numbers,
    chunks,
    partials,
    first_chunk,
    chunks_in_all,
    GRADIENT: tl.constexpr,
    WEIGHT: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    WIDTH: tl.constexpr,
    RULE: tl.constexpr,
):
    """Write the sums of one chunk to its column of partials, (12, chunks_in_all), in the order of device_table.ROW."""
    HEIGHT: tl.constexpr = BLOCK // WIDTH
    chunk = first_chunk + tl.program_id(0)
    own = chunks + chunk.to(tl.int64) * CHUNK_WORDS
    layer, start, rows, columns, row_length = (
        tl.load(own),
        tl.load(own + 1),
        tl.load(own + 2),
        tl.load(own + 3),
        tl.load(own + 4),
    )
    gradient = _at(words, layer, 0, GRADIENT) + start
    weight = _at(words, layer, 1, WEIGHT) + start
    first = _at(words, layer, 2, FIRST) + start
    second = _at(words, layer, 3, SECOND) + start
    scale, epsilon, _, _ = _coefficients(words, numbers, layer)
    decay = tl.load(numbers + layer * WORDS + 10)
    scale, epsilon, decay = scale.to(tl.float32), epsilon.to(tl.float32), decay.to(tl.float32)
    row = tl.arange(0, HEIGHT)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    whole = tl.zeros([HEIGHT, WIDTH], tl.float32)
    square = tl.zeros([HEIGHT, WIDTH], tl.float32)
    largest = tl.zeros([HEIGHT, WIDTH], tl.float32)
    lost = tl.zeros([HEIGHT, WIDTH], tl.int32)
    size = tl.zeros([HEIGHT, WIDTH], tl.float32)
    dot = tl.zeros([HEIGHT, WIDTH], tl.float32)
    weight_square = tl.zeros([HEIGHT, WIDTH], tl.float32)
    moved = tl.zeros([HEIGHT, WIDTH], tl.float32)
    along = tl.zeros([HEIGHT, WIDTH], tl.float32)
    first_square = tl.zeros([HEIGHT, WIDTH], tl.float32)
    second_sum = tl.zeros([HEIGHT, WIDTH], tl.float32)
    zero_rows = tl.zeros([HEIGHT], tl.int32)
    for above in range(0, rows, HEIGHT):
        used = tl.zeros([HEIGHT, WIDTH], tl.int32)
        for left in range(0, columns, WIDTH):
            here = ((above + row) < rows) & ((left + column) < columns)
            at = (above + row) * row_length + left + column
            g = tl.load(gradient + at, mask=here, other=0.0).to(tl.float32)
            magnitude = tl.abs(g)
            finite = magnitude < float("inf")
            kept = tl.where(finite, g, 0.0)
            magnitude = tl.where(finite, magnitude, 0.0)
            whole += g * g
            square += kept * kept
            largest = tl.maximum(largest, magnitude)
            lost += tl.where(finite, 0, 1)
            if RULE != GRADIENT_ALONE:
                w = tl.load(weight + at, mask=here, other=0.0).to(tl.float32)
                used |= tl.where(g != 0.0, 1, 0)
                size += magnitude
                dot += tl.where(finite, g * w, 0.0)
                weight_square += w * w
                if RULE != NO_UPDATE:
                    m = tl.load(first + at, mask=here, other=0.0).to(tl.float32)
                    if RULE == ADAM:
                        v = tl.load(second + at, mask=here, other=1.0).to(tl.float32)
                        d = m / (scale * tl.sqrt(v) + epsilon) + decay * w
                        first_square += m * m
                        second_sum += tl.where(here, v, 0.0)
                    else:
                        d = scale * g + epsilon * m + decay * w
                    moved += d * d
                    along += d * g
        if RULE != GRADIENT_ALONE:
            inside = (above + tl.arange(0, HEIGHT)) < rows
            zero_rows += tl.where(inside & (tl.max(used, 1) == 0), 1, 0)
    to = partials + chunk
    tl.store(to, tl.sum(whole))
    tl.store(to + chunks_in_all, tl.sum(square))
    tl.store(to + 2 * chunks_in_all, tl.max(largest))
    tl.store(to + 3 * chunks_in_all, tl.sum(lost).to(tl.float32))
    if RULE != GRADIENT_ALONE:
        tl.store(to + 4 * chunks_in_all, tl.sum(size))
        tl.store(to + 5 * chunks_in_all, tl.sum(zero_rows).to(tl.float32))
        tl.store(to + 6 * chunks_in_all, tl.sum(dot))
        tl.store(to + 7 * chunks_in_all, tl.sum(weight_square))
        tl.store(to + 8 * chunks_in_all, tl.sum(moved))
        tl.store(to + 9 * chunks_in_all, tl.sum(along))
        tl.store(to + 10 * chunks_in_all, tl.sum(first_square))
        tl.store(to + 11 * chunks_in_all, tl.sum(second_sum))


@triton.jit
def _total(row, count, BLOCK_OF_CHUNKS: tl.constexpr):
    """The sum of so many numbers, in float64."""
    total = tl.zeros([BLOCK_OF_CHUNKS], tl.float64)
    for start in range(0, count, BLOCK_OF_CHUNKS):
        at = start + tl.arange(0, BLOCK_OF_CHUNKS)
        total += tl.load(row + at, mask=at < count, other=0.0).to(tl.float64)
    return tl.sum(total)


@triton.jit
def _zero_rows(row, count, parts, BLOCK_OF_CHUNKS: tl.constexpr):
    """Zero rows of all chunks; where each row is cut in several parts, the rows of which every part is zero."""
    rows = count // parts
    total = tl.zeros([BLOCK_OF_CHUNKS], tl.float64)
    for start in range(0, rows, BLOCK_OF_CHUNKS):
        at = start + tl.arange(0, BLOCK_OF_CHUNKS)
        least = tl.load(row + at, mask=at < rows, other=0.0)
        for part in range(1, parts):
            least = tl.minimum(least, tl.load(row + part * rows + at, mask=at < rows, other=0.0))
        total += least.to(tl.float64)
    return tl.sum(total)


@triton.jit(do_not_specialize=["chunks_in_all", "columns", "count"])
def layers(
    words,
    numbers,
    pieces,
    partials,
    chunks_in_all,
    results,
    finite,
    columns,
    second,
    count,
    RULE: tl.constexpr,
    BLOCK_OF_CHUNKS: tl.constexpr,
):
    """Add the chunks of one layer up, and write its column of results, (5, columns), and finite, (2, columns).

    Unless the gradient alone was measured its column of second, (7, count), too.
    """
    index = tl.program_id(0).to(tl.int64)
    own = pieces + index * LAYER_WORDS
    first_chunk, chunks, parts, column = tl.load(own), tl.load(own + 1), tl.load(own + 2), tl.load(own + 3)
    start = partials + first_chunk
    to, to_finite = results + column, finite + column
    if tl.load(words + index * WORDS + 5) == 0:
        largest = tl.zeros([BLOCK_OF_CHUNKS], tl.float32)
        for begin in range(0, chunks, BLOCK_OF_CHUNKS):
            at = begin + tl.arange(0, BLOCK_OF_CHUNKS)
            row = tl.load(start + 2 * chunks_in_all + at, mask=at < chunks, other=0.0)
            largest = tl.maximum(largest, row)
        tl.store(to, _total(start, chunks, BLOCK_OF_CHUNKS).to(tl.float32))
        tl.store(to + columns, -tl.max(largest))
        tl.store(to + 2 * columns, tl.max(largest))
        tl.store(to_finite, _total(start + 3 * chunks_in_all, chunks, BLOCK_OF_CHUNKS))
        tl.store(to_finite + columns, _total(start + chunks_in_all, chunks, BLOCK_OF_CHUNKS))
    if RULE != GRADIENT_ALONE:
        factor = tl.load(numbers + index * WORDS + 11)
        _, _, of_first, of_second = _coefficients(words, numbers, index)
        size = _total(start + 4 * chunks_in_all, chunks, BLOCK_OF_CHUNKS)
        zero_rows = _zero_rows(start + 5 * chunks_in_all, chunks, parts, BLOCK_OF_CHUNKS)
        dot = _total(start + 6 * chunks_in_all, chunks, BLOCK_OF_CHUNKS)
        weight_square = _total(start + 7 * chunks_in_all, chunks, BLOCK_OF_CHUNKS)
        moved = _total(start + 8 * chunks_in_all, chunks, BLOCK_OF_CHUNKS)
        along = -factor * _total(start + 9 * chunks_in_all, chunks, BLOCK_OF_CHUNKS)
        first_square = _total(start + 10 * chunks_in_all, chunks, BLOCK_OF_CHUNKS) / (of_first * of_first)
        second_sum = _total(start + 11 * chunks_in_all, chunks, BLOCK_OF_CHUNKS) / of_second
        tl.store(to + 3 * columns, weight_square.to(tl.float32))
        tl.store(to + 4 * columns, moved.to(tl.float32))
        tl.store(second + index, size.to(tl.float32))
        tl.store(second + count + index, zero_rows.to(tl.float32))
        tl.store(second + 2 * count + index, dot.to(tl.float32))
        tl.store(second + 3 * count + index, along.to(tl.float32))
        tl.store(second + 4 * count + index, first_square.to(tl.float32))
        tl.store(second + 5 * count + index, second_sum.to(tl.float32))
        tl.store(second + 6 * count + index, of_second.to(tl.float32))


@triton.jit(do_not_specialize=["most"])
def samples(words, chosen, sample, most, KIND: tl.constexpr, BLOCK_OF_SAMPLE: tl.constexpr):
    """Write a sample of a chosen layer's second moments to its row of sample, (n, most); infinity after its end.

    chosen: (n, 3) the layer, how many numbers its sample has, and how far apart they lie.
    """
    index = tl.program_id(0).to(tl.int64)
    layer, count, stride = tl.load(chosen + 3 * index), tl.load(chosen + 3 * index + 1), tl.load(chosen + 3 * index + 2)
    at = tl.program_id(1) * BLOCK_OF_SAMPLE + tl.arange(0, BLOCK_OF_SAMPLE)
    second = _at(words, layer, 3, KIND)
    found = tl.load(second + at * stride, mask=at < count, other=float("inf")).to(tl.float32)
    tl.store(sample + index * most + at, found, mask=at < most)
