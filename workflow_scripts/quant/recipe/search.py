"""The exact scale search: the error of any candidate weight, without running the model.

For inputs X [N, in] and H = XᵀX/N, E‖(W-Ŵ)x‖² = tr((W-Ŵ) H (W-Ŵ)ᵀ). Scales follow AWQ
(Lin et al. 2023, arXiv 2306.00978, eq. 4-5): s = salience^α, Ŵ = Q(W·diag(s))·diag(1/s).
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from quant.calibration.second_moments import half, row_errors
from quant.recipe.fused import kernels
from quant.recipe.grids import Grid, nearest

SMALLEST_SCALE = 1e-5


class Target(NamedTuple):
    """One linear to find scales for: w [out, in], moment H [in, in], row_weight [out] or None for uniform, and the
    standard deviation of the input noise to allow for."""

    w: Tensor
    moment: Tensor
    row_weight: Tensor | None = None
    noise: float = 0.0


class Search(NamedTuple):
    """alpha; scale [in]; objective in the units of E‖(W-Ŵ)x‖²/out."""

    alpha: float
    scale: Tensor
    objective: float


def target_error(target: Target, rounded: Tensor, lower: Tensor) -> Tensor:
    """Σ_k weight_k (d_k H d_kᵀ + σ²‖ŵ_k‖²) / out in float64; the noise term is E‖Ŵε‖² in closed form. Overwrites
    rounded [out, in]; lower: half(H)."""
    noise = target.noise**2 * rounded.square().sum(1) if target.noise else 0.0
    errors = row_errors(rounded.sub_(target.w), lower).add_(noise)
    if target.row_weight is not None:
        errors *= target.row_weight
    return errors.sum(dtype=torch.float64) / len(errors)


def scale_for(salience: Tensor, alpha: float) -> Tensor:
    """s = salience^α, at least 1e-5. [in]"""
    return salience.pow(alpha).clamp_(min=SMALLEST_SCALE)


def candidate_errors(target: Target, scales: Tensor, grid: Grid, clip: bool) -> Tensor:
    """`target_error` of Q(W·diag(s))·diag(1/s) for each s of scales [n, in], in float64 [n]."""
    w, moment = target.w, target.moment
    importance = moment.diagonal() / scales**2 if clip else [None] * len(scales)
    if grid.uniform and (fused := kernels()) is not None and fused.judges(w, grid):
        clipped_by = importance if clip else None
        return fused.candidate_errors(w, scales, grid, clipped_by, moment, target.row_weight, target.noise**2)
    lower = half(moment)
    # one at a time: more would leave a CPU's caches
    return torch.stack(
        [
            target_error(target, nearest(w * scale, grid, weight).div_(scale), lower)
            for scale, weight in zip(scales, importance, strict=True)
        ]
    )


def search_scale(targets: Sequence[Target], salience: Tensor, grid: Grid, n_grid: int, clip: bool = False) -> Search:
    """The α in {0, 1/n_grid, …, 1} with the least summed error of all targets; the smaller α on a tie.

    salience [in] ≥ 0. A target's error is Σ_k weight_k (d_k H d_kᵀ + σ²‖ŵ_k‖²) / out.
    """
    scales = torch.stack([scale_for(salience, step / n_grid) for step in range(n_grid + 1)])
    totals = reduce(torch.add, (candidate_errors(target, scales, grid, clip) for target in targets))
    best = torch.argmin(totals)  # the first, hence smallest, of equal ones
    step, objective = torch.stack([best.double(), totals[best]]).tolist()  # the one wait for the device
    return Search(step / n_grid, scales[int(step)], objective)
