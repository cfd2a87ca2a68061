"""The exact scale search: the error of any candidate weight, without running the model.

For inputs X [N, in] and H = XᵀX/N, E‖(W-Ŵ)x‖² = tr((W-Ŵ) H (W-Ŵ)ᵀ). Scales follow AWQ
(Lin et al. 2023, arXiv 2306.00978, eq. 4-5): s = salience^α, Ŵ = Q(W·diag(s))·diag(1/s).
"""

import functools
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from quant.calibration.second_moments import halves, row_errors
from quant.recipe.grids import Grid, nearest
from quant.recipe.kernels import grid_kernels
from quant.runtime.compute import side_by_side

SMALLEST_SCALE = 1e-5
PART = 2**18  # weights that a CPU rounds and judges before it looks whether a scale still can win
SLACK = 1e-3  # of the least error: far more than what rounding takes from a sum


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


def row_terms(target: Target, rounded: Tensor, lower: Sequence[Tensor]) -> Tensor:
    """weight_k (d_k H d_kᵀ + σ²‖ŵ_k‖²) [out]; the noise term is E‖Ŵε‖² in closed form. Overwrites rounded [out, in];
    lower: halves(H)."""
    noise = target.noise**2 * rounded.square().sum(1) if target.noise else 0.0
    errors = row_errors(rounded.sub_(target.w), lower).add_(noise)
    if target.row_weight is not None:
        errors *= target.row_weight
    return errors


def target_error(target: Target, rounded: Tensor, lower: Sequence[Tensor]) -> Tensor:
    """The mean over outputs of `row_terms`, in float64."""
    return row_terms(target, rounded, lower).sum(dtype=torch.float64) / len(rounded)


def scale_for(salience: Tensor, alpha: float) -> Tensor:
    """s = salience^α, at least 1e-5. [in]"""
    return salience.pow(alpha).clamp_(min=SMALLEST_SCALE)


def rounded_at(w: Tensor, scale: Tensor, grid: Grid, importance: Tensor | None) -> Tensor:
    """Q(W·diag(s))·diag(1/s) of s [in]; importance: the diagonal of H, where ranges are clipped by it."""
    return nearest(w * scale, grid, None if importance is None else importance / scale**2).div_(scale)


def candidate_errors(target: Target, scales: Tensor, grid: Grid, clip: bool) -> Tensor:
    """`target_error` of Q(W·diag(s))·diag(1/s) for each s of scales [n, in], in float64 [n]; for a GPU."""
    w, moment = target.w, target.moment
    importance = moment.diagonal() if clip else None
    if grid.uniform and (fused := grid_kernels()) is not None and fused.judges(w, grid):
        clipped_by = moment.diagonal() / scales**2 if clip else None
        return fused.candidate_errors(w, scales, grid, clipped_by, moment, target.row_weight, target.noise**2)
    lower = halves(moment)
    return torch.stack([target_error(target, rounded_at(w, s, grid, importance), lower) for s in scales])


@functools.cache
def exponents(n_grid: int, device: torch.device) -> Tensor:
    """[n_grid + 1, 1], float32."""
    return torch.tensor([[step / n_grid] for step in range(n_grid + 1)], device=device)


def scales_for(salience: Tensor, n_grid: int) -> Tensor:
    """`scale_for` of each α in {0, 1/n_grid, …, 1} [n_grid + 1, in]."""
    alphas = [step / n_grid for step in range(n_grid + 1)]
    if not salience.is_cuda:
        return torch.stack([scale_for(salience, alpha) for alpha in alphas])
    found = salience.pow(exponents(n_grid, salience.device))  # a launch for all
    for alpha, powers in zip(alphas, found, strict=True):
        if alpha in (0, 0.5, 1):  # which have roundings of their own
            torch.pow(salience, alpha, out=powers)
    return found.clamp_(min=SMALLEST_SCALE)


class Race:
    """Candidates' errors, part of the rows by part: one of which a part is more than another's whole has lost and
    is given up, since no row's error is negative."""

    def __init__(self, targets: Sequence[Target], grid: Grid, clip: bool) -> None:
        self._grid, self._clip, self._best = grid, clip, float("inf")
        lowers = {id(target.moment): halves(target.moment) for target in targets}
        self._targets = [(target, lowers[id(target.moment)]) for target in targets]

    def error(self, scale: Tensor) -> float:
        """The sum of all targets' `target_error`, or ∞ where it has lost."""
        total = 0.0
        for target, lower in self._targets:
            error = self._error(target, lower, scale, self._best * (1 + SLACK) - total)
            if error is None:
                return float("inf")
            total += error
        self._best = min(self._best, total)
        return total

    def _error(self, target: Target, lower: Sequence[Tensor], scale: Tensor, limit: float) -> float | None:
        importance = target.moment.diagonal() if self._clip else None
        n_out, n_in = target.w.shape
        size = -(-max(1, PART // n_in) // self._grid.rows) * self._grid.rows
        errors, until = target.w.new_empty(n_out), 0.0
        for start in range(0, n_out, size):
            rows = slice(start, start + size)
            weight = None if target.row_weight is None else target.row_weight[rows]
            part = target._replace(w=target.w[rows], row_weight=weight)
            errors[rows] = row_terms(part, rounded_at(part.w, scale, self._grid, importance), lower)
            until += errors[rows].sum(dtype=torch.float64).item() / n_out
            if until > limit:
                return None
        return errors.sum(dtype=torch.float64).item() / n_out


def search_scale(targets: Sequence[Target], salience: Tensor, grid: Grid, n_grid: int, clip: bool = False) -> Search:
    """The α in {0, 1/n_grid, …, 1} with the least summed error of all targets; the smaller α on a tie.

    salience [in] ≥ 0. A target's error is Σ_k weight_k (d_k H d_kᵀ + σ²‖ŵ_k‖²) / out.
    """
    scales = scales_for(salience, n_grid)
    if salience.is_cuda:
        totals = reduce(torch.add, (candidate_errors(target, scales, grid, clip) for target in targets))
    else:
        totals = torch.tensor(side_by_side(Race(targets, grid, clip).error, scales), dtype=torch.float64)
    best = torch.argmin(totals)  # the first, hence smallest, of equal ones
    step, objective = torch.stack([best.double(), totals[best]]).tolist()  # the one wait for the device
    return Search(step / n_grid, scales[int(step)].clone(), objective)  # a row of it would hold all of them
