"""How weights find their grid points: one function per rounding, and the table that names them.

Each takes the scaled weight in groups [out, n_groups, g], step and zero [out, n_groups, 1], the grid, and Context; it
returns Rounded.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from quant.errors import InputError
from quant.recipe import grids
from quant.recipe.fused import COLUMNS, feed_back
from quant.recipe.grids import Grid

LARGEST_DAMP = 1.0


class Context(NamedTuple):
    """Of the scaled inputs x/s: moment [in, in], mean [in]; outlier_percent and damp as in the recipe."""

    moment: Tensor | None
    mean: Tensor | None
    outlier_percent: float
    damp: float


class Rounded(NamedTuple):
    """codes [out, n_groups, g], whole numbers in the weight's dtype; damp: what it took, where H was damped."""

    codes: Tensor
    damp: float | None = None


def nearest(groups: Tensor, step: Tensor, zero: Tensor, grid: Grid, context: Context) -> Rounded:
    """The nearest code."""
    return Rounded(grids.encode(groups, step, zero, grid))


def greedy_flip(groups: Tensor, step: Tensor, zero: Tensor, grid: Grid, context: Context) -> Rounded:
    """Nearest codes, some moved to their second-nearest so that each row's mean error e = Σ m_j (w_j - ŵ_j) shrinks.

    The research's awq_op_ref. Candidates are in range, have a change m_j·step·sign of e's sign, and are none of the
    outlier_percent of channels with the largest |m|. In the order of rounding distance, largest first, the first K are
    applied, K minimising |e - Σ changes|.
    """
    codes = grids.encode(groups, step, zero, grid)
    residual = groups - grids.decode(codes, step, zero)
    direction = torch.where(residual >= 0, 1.0, -1.0).to(groups.dtype)
    n_in = len(context.mean)
    mean = grids.to_groups(context.mean[None], grid.group_size).expand_as(groups)
    usable = torch.ones_like(context.mean, dtype=torch.bool)
    usable[context.mean.abs().argsort(descending=True, stable=True)[: int(context.outlier_percent * n_in)]] = False
    usable = grids.to_groups(usable[None].to(groups.dtype), grid.group_size).bool()
    error = (mean * residual).flatten(1).sum(1)
    change = mean * step * direction
    moved = codes + direction
    candidate = usable & (moved >= grid.lowest) & (moved <= grid.highest)
    candidate &= change * torch.sign(error)[:, None, None] > 0
    distance = torch.where(candidate, (residual / step).abs(), -1.0).flatten(1)
    order = distance.argsort(dim=1, descending=True, stable=True)
    ordered = torch.where(candidate, change, 0.0).flatten(1).gather(1, order)
    left = torch.cat([error[:, None], error[:, None] - ordered.cumsum(1)], dim=1).abs()
    flips = left.argmin(1)  # the first of equal ones: fewest flips
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    flipped = (rank < flips[:, None]).view_as(codes) & candidate
    return Rounded(torch.where(flipped, moved, codes))


def inverse_factor(moment: Tensor, damp: float) -> tuple[Tensor, float]:
    """Upper triangular U with UᵀU = (H + damp·mean(diag)·I)⁻¹, and the damp it took.

    H is flipped, factored and flipped back, so that one Cholesky factorisation and one triangular inverse do. A matrix
    that is not positive definite is damped ten times more and tried again, up to 1; then it is refused.
    """
    diagonal = moment.diagonal().mean()
    while damp <= LARGEST_DAMP:
        damped = moment.clone()
        damped.diagonal().add_(damp * diagonal)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed:
            identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
            inverse = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
            if torch.isfinite(inverse).all():
                return inverse, damp
        damp *= 10
    raise InputError(
        f"a second moment is not positive definite even with damp {damp / 10:g}; use more calibration text"
    )


def gptq(groups: Tensor, step: Tensor, zero: Tensor, grid: Grid, context: Context) -> Rounded:
    """Error feedback through the inverse factor of H (Frantar et al. 2022, arXiv 2210.17323, algorithm 1).

    On static groups: step and zero are those given. Columns by descending H_jj·mean_k step²_kj, the error that rounding
    leaves in each; H_jj alone (activation order) forgets that scaling moved the steps too.
    """
    n_in = len(context.moment)
    squares = grids.from_groups(step.square().mean(0, keepdim=True).expand(1, -1, groups.shape[2]), n_in)[0]
    order = (context.moment.diagonal() * squares).argsort(descending=True, stable=True)
    factor, damp = inverse_factor(context.moment[order][:, order], context.damp)
    w = grids.from_groups(groups, n_in)[:, order]
    group_of = torch.arange(n_in, device=w.device)[order] // groups.shape[2]
    steps, zeros = (t[:, :, 0][:, group_of] for t in (step, zero))
    codes = torch.empty_like(w)
    for start in range(0, n_in, COLUMNS):
        now, later = slice(start, start + COLUMNS), slice(start + COLUMNS, n_in)
        errors = feed_back(w[:, now], factor[now, now], steps[:, now], zeros[:, now], grid, codes[:, now])
        w[:, later].addmm_(errors, factor[now, later], alpha=-1)
    return Rounded(grids.to_groups(torch.empty_like(codes).index_copy_(1, order, codes), grid.group_size), damp)


ROUNDINGS: dict[str, Callable[[Tensor, Tensor, Tensor, Grid, Context], Rounded]] = {
    "nearest": nearest,
    "greedy_flip": greedy_flip,
    "gptq": gptq,
}
