"""A weight's rows rounded together: each takes up what the others' errors do to the model's loss.

With R [out, out] of a linear's outputs (calibration/row_moments.py) and H [in, in] of its inputs a change D costs
tr(R D H Dᵀ). Where the errors D_P of some rows are there, that is least for D_L = -R_LL⁻¹ R_LP D_P of the others,
whatever H is: so rows L are rounded, by H, not towards w_L but towards w_L + R_LL⁻¹ R_LP (w_P - ŵ_P). Feedback on both
sides is YAQA's (Tseng et al. 2025, arXiv 2505.22988); here rows go in SETS, and those of a set each for itself.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quant.models import products
from quant.recipe import grids
from quant.recipe.context import Context, Rounded
from quant.recipe.grids import Grid
from quant.recipe.inverse import inverse_factor
from quant.recipe.refine import descend, fit_steps, floored, of_columns

SETS = 4  # every fourth row is of one: rows next to each other, of one head, do most to each other
DAMP = 1e-4  # of R's mean diagonal


def mixed(rows: Tensor, share: float) -> Tensor:
    """share·R + (1 - share)·I, R divided by its mean diagonal: a derivative says little of an error of a step."""
    mean = rows.diagonal().mean()
    found = rows * (share / mean if mean > 0 else 0.0)
    found.diagonal().add_(1 - share)
    return found


def row_sets(n_out: int, device: torch.device) -> list[Tensor]:
    """Numbers of the rows of each set."""
    return [torch.arange(k, n_out, SETS, device=device) for k in range(min(SETS, n_out))]


def pulls(moment: Tensor, rows: Tensor) -> Tensor:
    """R_LL⁻¹ R_L· of rows L [n, out], 0 where they pull on themselves."""
    factor, _ = inverse_factor(moment[rows][:, rows], DAMP)
    others = moment[rows].index_fill(1, rows, 0.0)
    return factor.T @ (factor @ others)


def round_rows(
    groups: Tensor,
    step: Tensor,
    zero: Tensor,
    grid: Grid,
    context: Context,
    moment: Tensor,
    rounding: Callable[..., Rounded],
    rounds: int,
    stored: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, float | None]:
    """Codes in groups, steps, and the damp that it took: one set rounded after the other, then so many rounds of
    refinement, in which each set's codes hear of all other rows, and then all steps. moment: R, as `mixed` makes it."""
    n_out, n_in = len(groups), len(context.diagonal)
    sets = row_sets(n_out, groups.device)
    order = torch.cat(sets)
    factor, _ = inverse_factor(moment[order][:, order], DAMP)
    w = grids.from_groups(groups, n_in)
    codes, step = torch.empty_like(groups), step.clone()

    def left(rows: Tensor, target: Tensor) -> Tensor:
        """Of a set's target [n, in]."""
        return target - grids.from_groups(grids.decode(codes[rows], step[rows], zero[rows]), n_in)

    targets, start, damps = w[order], 0, list[float]()
    for rows in sets:
        end = start + len(rows)
        target = grids.to_groups(targets[start:end], grid.group_size)
        own = rounding(target, step[rows], zero[rows], grid, context)
        codes[rows] = own.codes
        damps += [] if own.damp is None else [own.damp]
        errors = torch.linalg.solve_triangular(
            factor[start:end, start:end].T, left(rows, targets[start:end]), upper=False
        )
        targets[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
        start = end
    pulling = [pulls(moment, rows) for rows in sets] if rounds else []
    everything = torch.arange(n_out, device=w.device)
    missing = left(everything, w)
    below, zeros = floored(context.copied()), of_columns(zero, groups, n_in)
    for _ in range(rounds):
        for rows, pull in zip(sets, pulling, strict=True):
            flat, steps = grids.from_groups(codes[rows], n_in), of_columns(step[rows], groups[rows], n_in)
            found = descend(w[rows] + pull @ missing, flat, steps, zeros[rows], grid, below)
            codes[rows] = grids.to_groups(found, grid.group_size)
            missing[rows] = left(rows, w[rows])
        for rows, pull in zip(sets, pulling, strict=True):
            targets[rows] = w[rows] + pull @ missing
        step = fit_steps(products.linear(targets, below), codes, step, zero, grid, below, stored)
        missing = left(everything, w)
    return codes, step, max(damps, default=None)
