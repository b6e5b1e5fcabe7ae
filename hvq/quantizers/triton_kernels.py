# mypy: ignore-errors
# Kernels are written in Triton's language, which looks like Python and has other types.
"""The GPU kernels: search among codes, and sums by code."""

import triton
import triton.language as tl


@triton.jit
def nearest_kernel(
    latents,
    codebook,
    half_norms,
    center,
    least_scores,
    nearest,
    number,
    size,
    dimension,
    tiles_per_split,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    DIMENSIONS: tl.constexpr,
    ONE_PASS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (b, s): latents of block b against the codes of split s.

    Every place of a [ROWS, CODES] tile keeps the least score that it has seen, and in which tile; only at the end are
    the places of a row compared.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    places = tl.arange(0, CODES)
    axes = tl.arange(0, DIMENSIONS)
    row_inside = rows < number
    best = tl.full([ROWS, CODES], float("inf"), tl.float32)
    owner = tl.zeros([ROWS, CODES], tl.int32)
    if ONE_PASS:
        inside = row_inside[:, None] & (axes < dimension)[None, :]
        kept = tl.load(latents + rows[:, None] * dimension + axes[None, :], mask=inside, other=0.0)
        kept = tl.where(inside, kept - tl.load(center + axes, mask=axes < dimension, other=0.0)[None, :], 0.0)
    first = split * tiles_per_split
    for tile in range(first, tl.minimum(first + tiles_per_split, tl.cdiv(size, CODES))):
        codes = tile * CODES + places
        code_inside = codes < size
        scores = tl.zeros([ROWS, CODES], tl.float32)
        if ONE_PASS:
            columns = tl.load(
                codebook + codes[None, :].to(tl.int64) * dimension + axes[:, None],
                mask=code_inside[None, :] & (axes < dimension)[:, None],
                other=0.0,
            )
            scores = tl.dot(kept, columns, input_precision=PRECISION)
        else:
            for start in range(0, dimension, DIMENSIONS):
                here = start + axes
                inside = row_inside[:, None] & (here < dimension)[None, :]
                part = tl.load(latents + rows[:, None] * dimension + here[None, :], mask=inside, other=0.0)
                part = tl.where(inside, part - tl.load(center + here, mask=here < dimension, other=0.0)[None, :], 0.0)
                columns = tl.load(
                    codebook + codes[None, :].to(tl.int64) * dimension + here[:, None],
                    mask=code_inside[None, :] & (here < dimension)[:, None],
                    other=0.0,
                )
                scores = tl.dot(part, columns, acc=scores, input_precision=PRECISION)
        scores = tl.load(half_norms + codes, mask=code_inside, other=float("inf"))[None, :] - scores
        better = scores < best
        best = tl.where(better, scores, best)
        owner = tl.where(better, tile, owner)
    least = tl.min(best, axis=1)
    indices = tl.where(best == least[:, None], owner * CODES + places[None, :], 2147483647)
    # A latent that is not finite has no least score: any code will do.
    found = tl.minimum(tl.min(indices, axis=1), size - 1)
    tl.store(least_scores + split.to(tl.int64) * number + rows, least, mask=row_inside)
    tl.store(nearest + split.to(tl.int64) * number + rows, found, mask=row_inside)


@triton.jit
def run_sums_kernel(
    latents,
    order,
    codes_of_runs,
    first_runs,
    starts,
    counts,
    sums,
    size,
    dimension,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    DIMENSIONS: tl.constexpr,
):
    """Program (r, d): the sum of run r, at most RUN latents of one code, in a slice of dimensions."""
    run = tl.program_id(0)
    code = tl.load(codes_of_runs + run)
    if code < size:
        axes = tl.program_id(1) * DIMENSIONS + tl.arange(0, DIMENSIONS)
        done = (run - tl.load(first_runs + code)) * RUN
        start = tl.load(starts + code) + done
        count = tl.minimum(tl.load(counts + code) - done, RUN)
        total = tl.zeros([DIMENSIONS], tl.float32)
        for offset in range(0, count, ROWS):
            places = offset + tl.arange(0, ROWS)
            rows = tl.load(order + start + places, mask=places < count, other=0)
            inside = (places < count)[:, None] & (axes < dimension)[None, :]
            total += tl.sum(
                tl.load(latents + rows[:, None] * dimension + axes[None, :], mask=inside, other=0.0), axis=0
            )
        tl.store(sums + run.to(tl.int64) * dimension + axes, total, mask=axes < dimension)


@triton.jit
def code_sums_kernel(run_sums, first_runs, runs, sums, dimension, DIMENSIONS: tl.constexpr):
    """Program (k, d): the sum of code k over its runs, in their order."""
    code = tl.program_id(0)
    axes = tl.program_id(1) * DIMENSIONS + tl.arange(0, DIMENSIONS)
    first = tl.load(first_runs + code)
    total = tl.zeros([DIMENSIONS], tl.float32)
    for run in range(first, first + tl.load(runs + code)):
        total += tl.load(run_sums + run * dimension + axes, mask=axes < dimension, other=0.0)
    tl.store(sums + code.to(tl.int64) * dimension + axes, total, mask=axes < dimension)
