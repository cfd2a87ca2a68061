"""GPTQ: error feedback through the inverse factor of H."""

import torch
from torch import Tensor

from quant.errors import InputError
from quant.recipe import grids
from quant.recipe.context import Context, Rounded
from quant.recipe.fused import COLUMNS, feed_back
from quant.recipe.grids import Grid

LARGEST_DAMP = 1.0


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
            identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
            inverse = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
            if torch.isfinite(inverse).all():
                return inverse / root, damp
        damp *= 10
    raise InputError(
        f"a second moment is not positive definite even with damp {damp / 10:g}; use more calibration text"
    )


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
    for start in range(0, n_in, COLUMNS):
        now, later = slice(start, start + COLUMNS), slice(start + COLUMNS, n_in)
        errors = feed_back(w[:, now], factor[now, now], steps[:, now], zeros[:, now], grid, codes[:, now])
        w[:, later].addmm_(errors, factor[now, later], alpha=-1)
    return Rounded(grids.to_groups(torch.empty_like(codes).index_copy_(1, order, codes), grid.group_size), damp)
