"""Triton kernel of `refine.sweep`: codes of 128 columns, one after another, in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quant.recipe.grid_kernels import listed, nearest_listed
from quant.recipe.grids import Grid

ROWS, WARPS = 8, 4  # output channels that a program holds, 128 columns of each; its warps


@triton.jit
def _sweep(
    left, inner, codes, steps, found, moved, points,
    n_out, left_row, left_column, codes_row, codes_column, steps_row, steps_column, lowest, highest, smallest,
    LISTED: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = rows < n_out
    columns = tl.arange(0, COLUMNS)
    mask = there[:, None] & (columns < WIDTH)[None, :]
    block = tl.load(left + rows[:, None] * left_row + columns[None, :] * left_column, mask=mask, other=0.0)
    after = tl.zeros([ROWS, COLUMNS], tl.float32)
    change = tl.zeros([ROWS, COLUMNS], tl.float32)
    # a column's numbers are read one column ahead: nothing waits for memory
    step = tl.load(steps + rows * steps_row, mask=there, other=1.0)
    old = tl.load(codes + rows * codes_row, mask=there, other=0.0)
    own = tl.load(inner)
    later = tl.load(inner + columns, mask=columns < WIDTH, other=0.0)
    for j in range(WIDTH):
        following = tl.minimum(j + 1, WIDTH - 1)
        next_step = tl.load(steps + rows * steps_row + following * steps_column, mask=there, other=1.0)
        next_old = tl.load(codes + rows * codes_row + following * codes_column, mask=there, other=0.0)
        next_own = tl.load(inner + following * WIDTH + following)
        next_later = tl.load(inner + following * WIDTH + columns, mask=columns < WIDTH, other=0.0)
        pick = (columns == j)[None, :]
        rest = tl.sum(tl.where(pick, block, 0.0), 1)
        scaled = step * own
        scaled = tl.where(scaled < 0, tl.minimum(scaled, -smallest), tl.maximum(scaled, smallest))
        code = tl.div_rn(rest, scaled) + old
        if LISTED:
            code = nearest_listed(code, points, LISTED)
        else:
            code = (code + 12582912.0) - 12582912.0  # ties to even, where |code| < 2²²; beyond, it is out of range
            code = tl.minimum(tl.maximum(code, lowest), highest)
        difference = (code - old) * step
        block -= difference[:, None] * tl.where(columns > j, later, 0.0)[None, :]
        after = tl.where(pick, code[:, None], after)
        change = tl.where(pick, difference[:, None], change)
        step, old, own, later = next_step, next_old, next_own, next_later
    place = rows[:, None] * WIDTH + columns[None, :]
    tl.store(found + place, after, mask=mask)
    tl.store(moved + place, change, mask=mask)


def sweep(left: Tensor, inner: Tensor, codes: Tensor, steps: Tensor, grid: Grid, columns: int) -> tuple[Tensor, Tensor]:
    """refine.sweep on a block of at most `columns` (a power of two)."""
    n_out, width = left.shape
    found, moved = torch.empty(2, n_out, width, device=left.device)
    points, n = listed(grid, left)
    _sweep[(triton.cdiv(n_out, ROWS),)](
        left, inner.contiguous(), codes, steps, found, moved, points,
        n_out, *left.stride(), *codes.stride(), *steps.stride(), float(grid.lowest), float(grid.highest), 1e-37,
        LISTED=n, WIDTH=width, ROWS=ROWS, COLUMNS=columns, num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return found, moved
