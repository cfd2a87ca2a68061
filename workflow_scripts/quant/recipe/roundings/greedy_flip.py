"""The research's flips: nearest codes, some moved so that each row's mean error shrinks."""

import torch
from torch import Tensor

from quant.recipe import grids
from quant.recipe.context import Context, Rounded
from quant.recipe.grids import Grid


def greedy_flip(
    groups: Tensor, step: Tensor, zero: Tensor, grid: Grid, context: Context, *, outlier_percent: float
) -> Rounded:
    """Nearest codes, some moved to their second-nearest so that each row's mean error e = Σ m_j (w_j - ŵ_j) shrinks.

    The research's awq_op_ref. Candidates are in range, have a change m_j·step·gap of e's sign, and are none of the
    outlier_percent of channels with the largest |m|. In the order of rounding distance, by the gap between the two
    points, largest first, the first K are applied, K minimising |e - Σ changes|.
    """
    codes = grids.encode(groups, step, zero, grid)
    residual = groups - grids.decode(codes, step, zero)
    direction = torch.where(residual >= 0, 1.0, -1.0).to(groups.dtype)
    x_mean, n_in = context.mean, len(context.mean)
    mean = grids.to_groups(x_mean[None], grid.group_size).expand_as(groups)
    usable = torch.ones_like(x_mean, dtype=torch.bool)
    usable[x_mean.abs().argsort(descending=True, stable=True)[: int(outlier_percent * n_in)]] = False
    usable = grids.to_groups(usable[None].to(groups.dtype), grid.group_size).bool()
    error = (mean * residual).flatten(1).sum(1)
    moved = grid.points.beside(codes, direction)
    gap = moved - codes  # 1 of whole numbers
    change = mean * step * gap
    candidate = usable & (gap != 0)
    candidate &= change * torch.sign(error)[:, None, None] > 0
    distance = torch.where(candidate, (residual / step / gap).abs(), -1.0).flatten(1)
    order = distance.argsort(dim=1, descending=True, stable=True)
    ordered = torch.where(candidate, change, 0.0).flatten(1).gather(1, order)
    left = torch.cat([error[:, None], error[:, None] - ordered.cumsum(1)], dim=1).abs()
    flips = left.argmin(1)  # the first of equal ones: fewest flips
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    flipped = (rank < flips[:, None]).view_as(codes) & candidate
    return Rounded(torch.where(flipped, moved, codes))
