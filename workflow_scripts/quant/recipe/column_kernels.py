"""Triton kernel of what goes over a block's columns one after another: GPTQ's feedback, and refinement's sweep.

Each column waits for the one before it, so that the time is the number of columns times the longest chain of operations
that one needs. A row's numbers of a quarter of the block lie in eight threads, which have a column's value together in
three exchanges; they exchange it while the column before is being rounded, and take that one's share off at last.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quant.recipe.grids import Grid
from quant.recipe.numbers import Listed, tables

COLUMNS, QUARTER = 128, 32  # of a block, at most, and of what is one tensor in registers
ROWS, WARPS = 8, 2  # output channels that a program holds; its warps
SMALLEST = tl.constexpr(1e-37)  # float32's smallest normal number is 1.2e-38


@triton.jit
def _rint(x):
    """To the nearest whole number, ties to even, where |x| < 2²²; beyond, codes are out of range whatever it gives."""
    return (x + 12582912.0) - 12582912.0  # 1.5·2²³: no bits are left for a fraction


@triton.jit
def _inverse(x):
    """1/x as IEEE rounds it; 0 where x is so small that it overflows."""
    return tl.where(tl.abs(x) < SMALLEST, 0.0, tl.div_rn(tl.full(x.shape, 1.0, tl.float32), x))


@triton.jit
def _divide(x, by, inverse):
    """x/by as IEEE rounds it, of by and its inverse: a quotient and one correction (Markstein 1990)."""
    found = x * inverse
    return tl.fma(tl.fma(-found, by, x), inverse, found)


@triton.jit
def _divisor(step, own, SWEEP: tl.constexpr):
    """What a column's numbers [rows] are divided by, and its inverse; own: of inner's diagonal."""
    by = step * own if SWEEP else step
    if SWEEP:
        by = tl.where(by < 0, tl.minimum(by, -SMALLEST), tl.maximum(by, SMALLEST))
    return by, _inverse(by)


@triton.jit
def _listed(x, points, LISTED: tl.constexpr, LEVELS: tl.constexpr):
    """The nearest of LISTED values; points: those, then the largest number that goes to each but the last."""
    at = tl.zeros(x.shape, tl.int32)
    for level in tl.static_range(LEVELS):
        probe = at + (1 << (LEVELS - 1 - level))
        border = tl.load(points + LISTED - 1 + probe, mask=probe < LISTED, other=float("inf"))
        at = tl.where(x > border, probe, at)
    return tl.load(points + at)


@triton.jit
def _rounded(
    x, by, inverse, step, middle, own, lowest, highest, points,
    LISTED: tl.constexpr, LEVELS: tl.constexpr, SWEEP: tl.constexpr,
):  # fmt: skip
    """A column's codes, and what of it later columns take up; middle: zero points, or the old codes."""
    place = _divide(x, by, inverse)
    if LISTED:
        code = _listed(place + middle, points, LISTED, LEVELS)
    else:
        code = _rint(place + middle) if SWEEP else _rint(place) + middle
        code = tl.minimum(tl.maximum(code, lowest), highest)
    change = (code - middle) * step
    return code, change if SWEEP else (x - change) * own


@triton.jit
def _quarter(
    block, b1, b2, b3, inner, rows, there, steps, steps_row, steps_column, middles, middles_row, middles_column,
    first, lowest, highest, points,
    WIDTH: tl.constexpr, COUNT: tl.constexpr, LATER: tl.constexpr, QUARTER: tl.constexpr, SWEEP: tl.constexpr,
    LISTED: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """COUNT columns from `first` on, in `block` [rows, QUARTER]; b1 to b3: the LATER quarters after it. Returns codes,
    what was handed on, and the later quarters without that."""
    columns = tl.arange(0, QUARTER)
    found, left = tl.zeros_like(block), tl.zeros_like(block)
    last = first + COUNT - 1
    factors = inner + first * WIDTH + first + columns
    in0, in1 = columns + first < WIDTH, columns + (first + QUARTER) < WIDTH
    in2, in3 = columns + (first + 2 * QUARTER) < WIDTH, columns + (first + 3 * QUARTER) < WIDTH
    step_at, middle_at = steps + rows * steps_row, middles + rows * middles_row
    # numbers are read one or two columns ahead: nothing waits for memory
    step = tl.load(step_at + first * steps_column, mask=there, other=1.0)
    middle = tl.load(middle_at + first * middles_column, mask=there, other=0.0)
    own = tl.load(inner + first * (WIDTH + 1))
    second = tl.minimum(first + 1, last)
    next_step = tl.load(step_at + second * steps_column, mask=there, other=1.0)
    next_middle = tl.load(middle_at + second * middles_column, mask=there, other=0.0)
    next_own = tl.load(inner + second * (WIDTH + 1))
    f0 = tl.load(factors, mask=in0, other=0.0)
    f1 = tl.load(factors + QUARTER, mask=in1, other=0.0) if LATER > 0 else f0
    f2 = tl.load(factors + 2 * QUARTER, mask=in2, other=0.0) if LATER > 1 else f0
    f3 = tl.load(factors + 3 * QUARTER, mask=in3, other=0.0) if LATER > 2 else f0
    by, inverse = _divisor(step, own, SWEEP)
    own_inverse = own if SWEEP else tl.div_rn(own * 0.0 + 1.0, own)
    ahead = tl.sum(tl.where((columns == 0)[None, :], block, 0.0), 1)  # the column, but for what the last one hands on
    change, link, before = tl.zeros_like(ahead), own * 0.0, f0 * 0.0
    for j in range(COUNT):
        third = tl.minimum(first + j + 2, last)
        third_step = tl.load(step_at + third * steps_column, mask=there, other=1.0)
        third_middle = tl.load(middle_at + third * middles_column, mask=there, other=0.0)
        third_own = tl.load(inner + third * (WIDTH + 1))
        below = factors + tl.minimum(j + 1, COUNT - 1) * WIDTH
        next_f0 = tl.load(below, mask=in0, other=0.0)
        next_link = tl.load(inner + (first + j) * WIDTH + tl.minimum(first + j + 1, last))
        x = tl.fma(-change, link, ahead)
        block = tl.fma(-change[:, None], before[None, :], block)
        ahead = tl.sum(tl.where((columns == j + 1)[None, :], block, 0.0), 1)
        code, change = _rounded(
            x, by, inverse, step, middle, own_inverse, lowest, highest, points, LISTED, LEVELS, SWEEP
        )
        pick = (columns == j)[None, :]
        found = tl.where(pick, code[:, None], found)
        left = tl.where(pick, change[:, None], left)
        if LATER > 0:
            b1 = tl.fma(-change[:, None], f1[None, :], b1)
            f1 = tl.load(below + QUARTER, mask=in1, other=0.0)
        if LATER > 1:
            b2 = tl.fma(-change[:, None], f2[None, :], b2)
            f2 = tl.load(below + 2 * QUARTER, mask=in2, other=0.0)
        if LATER > 2:
            b3 = tl.fma(-change[:, None], f3[None, :], b3)
            f3 = tl.load(below + 3 * QUARTER, mask=in3, other=0.0)
        link, before, f0 = next_link, f0, next_f0
        by, inverse = _divisor(next_step, next_own, SWEEP)
        own_inverse = own if SWEEP else tl.div_rn(own * 0.0 + 1.0, next_own)
        step, middle = next_step, next_middle
        next_step, next_middle, next_own = third_step, third_middle, third_own
    return found, left, b1, b2, b3


@triton.jit
def _columns(
    w, inner, steps, middles, codes, changes, points,
    n_out, w_row, w_column, steps_row, steps_column, middles_row, middles_column, codes_row, codes_column, changes_row,
    lowest, highest,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, QUARTER: tl.constexpr, SWEEP: tl.constexpr,
    LISTED: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there, columns = rows < n_out, tl.arange(0, QUARTER)
    here = there[:, None]
    at = w + rows[:, None] * w_row + columns[None, :] * w_column
    b0 = tl.load(at, mask=here & (columns < WIDTH)[None, :], other=0.0)
    b1 = tl.load(at + w_column * QUARTER, mask=here & (columns + QUARTER < WIDTH)[None, :], other=0.0)
    b2 = tl.load(at + w_column * (2 * QUARTER), mask=here & (columns + 2 * QUARTER < WIDTH)[None, :], other=0.0)
    b3 = tl.load(at + w_column * (3 * QUARTER), mask=here & (columns + 3 * QUARTER < WIDTH)[None, :], other=0.0)
    quarters: tl.constexpr = (WIDTH + QUARTER - 1) // QUARTER
    for k in tl.static_range(quarters):
        found, left, b0, b1, b2 = _quarter(
            b0, b1, b2, b3, inner, rows, there, steps, steps_row, steps_column, middles, middles_row, middles_column,
            k * QUARTER, lowest, highest, points, WIDTH,
            QUARTER if (k + 1) * QUARTER <= WIDTH else WIDTH - k * QUARTER, quarters - 1 - k, QUARTER, SWEEP,
            LISTED, LEVELS,
        )  # fmt: skip
        own = columns + k * QUARTER
        mask = here & (own < WIDTH)[None, :]
        tl.store(codes + rows[:, None] * codes_row + own[None, :] * codes_column, found, mask=mask)
        tl.store(changes + rows[:, None] * changes_row + own[None, :], left, mask=mask)


def _of(grid: Grid, like: Tensor) -> tuple[Tensor, int]:
    """What `_listed` takes, in the dtype and on the device of `like`; anything, and 0, of whole numbers."""
    if not isinstance(grid.points, Listed):
        return like, 0
    values, borders = tables(grid.points.values, like.dtype, like.device)
    return torch.cat([values, borders]), len(values)


def _launch(
    w: Tensor, inner: Tensor, steps: Tensor, middles: Tensor, grid: Grid, codes: Tensor, changes: Tensor, sweeps: bool
) -> None:
    n_out, width = w.shape
    points, listed = _of(grid, w)
    _columns[(triton.cdiv(n_out, ROWS),)](
        w, inner.contiguous(), steps, middles, codes, changes, points,
        n_out, *w.stride(), *steps.stride(), *middles.stride(), *codes.stride(), changes.stride(0),
        float(grid.lowest), float(grid.highest), WIDTH=width, ROWS=ROWS, QUARTER=QUARTER, SWEEP=sweeps,
        LISTED=listed, LEVELS=max(0, listed - 1).bit_length(), num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip


def feed_back(
    w: Tensor, inner: Tensor, steps: Tensor, zeros: Tensor, grid: Grid, codes: Tensor, errors: Tensor
) -> None:
    """kernels.feed_back on a block of at most COLUMNS, in whatever order its tensors lie but for `errors`."""
    _launch(w, inner, steps, zeros, grid, codes, errors, False)


def sweep(left: Tensor, inner: Tensor, codes: Tensor, steps: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """refine.sweep on a block of at most COLUMNS."""
    found, moved = torch.empty(2, *left.shape, device=left.device)
    _launch(left, inner, steps, codes, grid, found, moved, True)
    return found, moved
