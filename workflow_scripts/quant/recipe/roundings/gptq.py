"""GPTQ: error feedback through the inverse factor of H."""

import torch
from torch import Tensor

from quant.errors import InputError
from quant.recipe import grids
from quant.recipe.context import Context, Rounded
from quant.recipe.fused import COLUMNS, feed_back
from quant.recipe.grids import Grid
from quant.recipe.triangles import inverse_upper

LARGEST_DAMP = 1.0
PANEL = 512  # columns whose errors a GPU takes to all later ones at once, four blocks of COLUMNS


def inverse_factor(moment: Tensor, damp: float) -> tuple[Tensor, float]:
    """Upper triangular U with UᵀU = (H + damp·mean(diag)·I)⁻¹, and the damp it took.

    H is flipped, factored and flipped back, so that one Cholesky factorisation and one triangular inverse do. A matrix
    that is not positive definite is damped ten times more and tried again, up to 1; then it is refused.
    """
    mean = moment.diagonal().mean()
    if mean == 0:
        return torch.eye(len(moment), dtype=moment.dtype, device=moment.device), damp
    # near 1 by a power of four, which changes no digit: H of a tiny input has no inverse in float32
    root = torch.exp2(torch.floor(torch.log2(mean) / 2))
    moment = moment / root / root
    diagonal = moment.diagonal().mean()
    while damp <= LARGEST_DAMP:
        damped = moment.clone()
        damped.diagonal().add_(damp * diagonal)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed:
            inverse = inverse_of(lower.flip(0, 1))
            if torch.isfinite(inverse).all():
                return inverse / root, damp
        damp *= 10
    raise InputError(
        f"a second moment is not positive definite even with damp {damp / 10:g}; use more calibration text"
    )


def inverse_of(upper: Tensor) -> Tensor:
    """Of an upper triangular matrix."""
    if upper.is_cuda:
        return inverse_upper(upper)
    identity = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    return torch.linalg.solve_triangular(upper, identity, upper=True)


def gptq(groups: Tensor, step: Tensor, zero: Tensor, grid: Grid, context: Context, *, damp: float) -> Rounded:
    """Error feedback through the inverse factor of H (Frantar et al. 2022, arXiv 2210.17323, algorithm 1).

    On static groups: step and zero are those given. Columns by descending H_jj·mean_k step²_kj, the error that rounding
    leaves in each; H_jj alone (activation order) forgets that scaling moved the steps too.
    """
    moment = context.moment
    n_in = len(moment)
    squares = grids.from_groups(step.square().mean(0, keepdim=True).expand(1, -1, groups.shape[2]), n_in)[0]
    order = (moment.diagonal() * squares).argsort(descending=True, stable=True)
    factor, damp = inverse_factor(moment[order][:, order], damp)
    w = grids.from_groups(groups, n_in)[:, order]
    group_of = torch.arange(n_in, device=w.device)[order] // groups.shape[2]
    steps, zeros = (t[:, :, 0][:, group_of] for t in (step, zero))
    codes = torch.empty_like(w)
    wide = PANEL if w.is_cuda else COLUMNS
    for first in range(0, n_in, wide):
        end = min(first + wide, n_in)
        errors = w.new_empty(len(w), end - first)
        for start in range(first, end, COLUMNS):
            now, later = slice(start, min(start + COLUMNS, end)), slice(start + COLUMNS, end)
            left = errors[:, start - first : start - first + COLUMNS]
            feed_back(w[:, now], factor[now, now], steps[:, now], zeros[:, now], grid, codes[:, now], left)
            w[:, later].addmm_(left, factor[now, later], alpha=-1)
        w[:, end:].addmm_(errors, factor[first:end, end:], alpha=-1)
    return Rounded(grids.to_groups(torch.empty_like(codes).index_copy_(1, order, codes), grid.group_size), damp)
