"""The research's flips: nearest codes, some moved so that each row's mean error shrinks."""

import torch
from torch import Tensor

from quant.recipe import grids
from quant.recipe.context import Candidates, Context, Rounded
from quant.recipe.grids import Grid
from quant.recipe.kernels import rounding_kernels


def candidates(groups: Tensor, step: Tensor, zero: Tensor, grid: Grid, mean: Tensor, usable: Tensor) -> Candidates:
    """Of groups [out, n_groups, g]; mean, and usable as 0 or 1, [1, n_groups, g]."""
    if groups.is_cuda and grid.uniform and (fused := rounding_kernels()) is not None and fused.flips(groups):
        return fused.candidates(groups, step, zero, grid, mean, usable)
    codes = grids.encode(groups, step, zero, grid)
    residual = groups - grids.decode(codes, step, zero)
    direction = torch.where(residual * torch.sign(step) >= 0, 1.0, -1.0).to(groups.dtype)
    error = (mean * residual).flatten(1).sum(1)
    moved = grid.points.beside(codes, direction)
    gap = moved - codes  # 1 of whole numbers
    change = mean * step * gap
    possible = usable.bool() & (gap != 0)
    possible &= change * torch.sign(error)[:, None, None] > 0
    distance = torch.where(possible, (residual / step / gap).abs(), -1.0)
    return Candidates(codes, moved, distance.flatten(1), torch.where(possible, change, 0.0).flatten(1), error)


def greedy_flip(
    groups: Tensor, step: Tensor, zero: Tensor, grid: Grid, context: Context, *, outlier_percent: float
) -> Rounded:
    """Nearest codes, some moved to their second-nearest so that each row's mean error e = Σ m_j (w_j - ŵ_j) shrinks.

    The research's awq_op_ref. Candidates are in range, have a change m_j·step·gap of e's sign, and are none of the
    outlier_percent of channels with the largest |m|. In the order of rounding distance, by the gap between the two
    points, largest first, the first K are applied, K minimising |e - Σ changes|.
    """
    x_mean, n_in = context.mean, len(context.mean)
    usable = torch.ones_like(x_mean)
    usable[x_mean.abs().argsort(descending=True, stable=True)[: int(outlier_percent * n_in)]] = 0
    mean, usable = (grids.to_groups(t[None], grid.group_size) for t in (x_mean, usable))
    codes, moved, distance, change, error = candidates(groups, step, zero, grid, mean, usable)
    order = distance.argsort(dim=1, descending=True, stable=True)
    left = torch.cat([error[:, None], error[:, None] - change.gather(1, order).cumsum(1)], dim=1).abs()
    flips = left.argmin(1)  # the first of equal ones: fewest flips
    first = torch.arange(order.shape[1], device=order.device) < flips[:, None]
    flipped = torch.empty_like(first).scatter_(1, order, first) & (distance >= 0)
    return Rounded(torch.where(flipped.view_as(codes), moved, codes))
