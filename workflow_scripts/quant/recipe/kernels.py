"""What a GPU does by kernels of its own where Triton is installed, and torch does everywhere else."""

from types import ModuleType

import torch
from torch import Tensor

from quant.recipe import grids
from quant.recipe.grids import Grid
from quant.runtime.compute import where_installed

COLUMNS = 128  # columns per block of GPTQ; the update of all later ones waits for the block's end
NEXT = 16  # columns that a CPU updates after each of them; the block's others wait for so many


@where_installed
def grid_kernels() -> ModuleType:
    """Fused kernels for GPUs, by Triton."""
    from quant.recipe import grid_kernels

    return grid_kernels


@where_installed
def rounding_kernels() -> ModuleType:
    """The same of roundings."""
    from quant.recipe import rounding_kernels

    return rounding_kernels


@where_installed
def column_kernels() -> ModuleType:
    """The same of what goes column by column."""
    from quant.recipe import column_kernels

    return column_kernels


def fit_range(
    groups: Tensor, grid: Grid, importance: Tensor | None, stored: grids.Stored | None = None
) -> tuple[Tensor, Tensor]:
    """grids.fit_range: of a GPU's many passes, one where a range of whole numbers is clipped."""
    if importance is not None and grid.uniform and (fused := grid_kernels()) is not None and fused.fits(groups):
        return fused.fit_clipped(groups, grid, grids.to_groups(importance[None], grid.group_size))
    return grids.fit_range(groups, grid, importance, stored)


def feed_back(
    w: Tensor, inner: Tensor, steps: Tensor, zeros: Tensor, grid: Grid, codes: Tensor, errors: Tensor
) -> None:
    """Rounds the columns of w [out, width] in turn into `codes`, each taking up what the ones before it left; inner is
    the factor's block. Into `errors` goes what later blocks take up, (w - ŵ)/U_jj [out, width]."""
    if w.is_cuda and w.dtype == torch.float32 and (fused := column_kernels()) is not None:
        fused.feed_back(w, inner, steps, zeros, grid, codes, errors)
        return
    block, steps, zeros = (t.T.contiguous() for t in (w, steps, zeros))  # a column's numbers next to each other
    found, left, points = torch.empty_like(block), torch.empty_like(block), grid.points
    later = inner.triu(1)
    for start in range(0, len(block), NEXT):
        now, rest = slice(start, start + NEXT), block[start : start + NEXT]
        for column, step, zero, code, error, pivot, onto in zip(
            rest, steps[now], zeros[now], found[now], left[now], inner.diagonal()[now], later[now, now], strict=True
        ):
            points.nearest_(torch.div(column, step, out=code), zero)
            torch.sub(zero, code, out=error).mul_(step).add_(column).div_(pivot)
            rest.addr_(onto, error, alpha=-1)
        block[start + NEXT :].addmm_(inner[now, start + NEXT :].T, left[now], alpha=-1)
    codes.copy_(found.T)
    errors.copy_(left.T)
