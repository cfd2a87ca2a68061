"""A weight's rows rounded together: each takes up what the others' errors do to the model's loss.

With R [out, out] of a linear's outputs (calibration/row_moments.py) and H [in, in] of its inputs a change D costs
tr(R D H Dᵀ). Where the errors D_P of some rows are there, that is least for D_L = -R_LL⁻¹ R_LP D_P of the others,
whatever H is: so rows L are rounded, by H, not towards w_L but towards w_L + R_LL⁻¹ R_LP (w_P - ŵ_P). Feedback on both
sides is YAQA's (Tseng et al. 2025, arXiv 2505.22988); here rows go in SETS, and those of a set each for itself.
"""

from functools import partial

import torch
from torch import Tensor

from quant.recipe import grids
from quant.recipe.context import Context
from quant.recipe.error_feedback import factored, fed
from quant.recipe.grids import Codes, Grid
from quant.recipe.inverse import inverse_factor
from quant.recipe.refine import as_recorded, descend, fit_steps, floored, of_columns
from quant.runtime import products

SETS = 4  # every fourth row is of one: rows next to each other, of one head, do most to each other
DAMP = 1e-4  # of R's mean diagonal


def mixed(rows: Tensor, share: float) -> Tensor:
    """share·R + (1 - share)·I, R divided by its mean diagonal: a derivative says little of an error of a step."""
    mean = rows.diagonal().mean()
    found = rows * (share / mean if mean > 0 else 0.0)
    found.diagonal().add_(1 - share)
    return found


def row_sets(n_out: int) -> list[slice]:
    """The rows of each set."""
    return [slice(k, n_out, SETS) for k in range(min(SETS, n_out))]


def pulls(moment: Tensor, rows: slice) -> Tensor:
    """R_LL⁻¹ R_L· of rows L [n, out], 0 where they pull on themselves."""
    factor, _ = inverse_factor(moment[rows, rows].clone(), DAMP)
    others = moment[rows].clone()
    others[:, rows] = 0
    return factor.T @ (factor @ others)


def round_rows(
    groups: Tensor,
    step: Tensor,
    zero: Tensor,
    grid: Grid,
    context: Context,
    moment: Tensor,
    damp: float,
    rounds: int,
    stored: grids.Stored | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Codes in groups, steps, and the damp that H took: by GPTQ one set after the other, then so many rounds of
    refinement, in which each set's codes hear of all other rows, and then all steps. moment: R, as `mixed` makes it;
    damp: of H, whose columns have one order for all sets."""
    sets = row_sets(len(groups))
    by_sets = torch.cat([torch.arange(len(groups), device=groups.device)[rows] for rows in sets])
    of_rows, _ = inverse_factor(moment[by_sets][:, by_sets], DAMP)
    factor, order, damp = factored(step, groups.shape[2], context, damp)
    pulling = [pulls(moment, rows) for rows in sets] if rounds else []
    given = groups, step, zero, of_rows, factor, order, floored(context.copied()), *pulling
    codes, step = as_recorded(partial(turns, grid, rounds), ("row feedback", grid, rounds), stored, *given)
    return codes, step, damp


def turns(
    grid: Grid,
    rounds: int,
    stored: grids.Stored | None,
    groups: Tensor,
    step: Tensor,
    zero: Tensor,
    of_rows: Tensor,
    factor: Tensor,
    order: Tensor,
    moment: Tensor,
    *pulling: Tensor,
) -> tuple[Tensor, Tensor]:
    """Codes and steps. of_rows, factor: inverse factors of R, its rows by sets, and of H, its columns in their
    order; moment: H to refine by; pulling: each set's `pulls`."""
    n_in, sets = len(moment), row_sets(len(groups))
    w = grids.from_groups(groups, n_in)
    codes, step = torch.empty_like(groups), step.clone()

    def left(rows: slice, target: Tensor) -> Tensor:
        """Of a set's target [n, in]."""
        return target - grids.from_groups(grids.decode(codes[rows], step[rows], zero[rows]), n_in)

    targets, start = torch.cat([w[rows] for rows in sets]), 0
    for rows in sets:
        end = start + len(w[rows])
        target = targets[start:end]
        own = grids.to_groups(target, grid.group_size), step[rows], zero[rows]
        codes[rows] = fed(*own, grid, factor, order)
        errors = torch.linalg.solve_triangular(of_rows[start:end, start:end].T, left(rows, target), upper=False)
        targets[end:].addmm_(of_rows[start:end, end:].T, errors, alpha=-1)
        start = end
    everything = slice(len(groups))
    missing, zeros = left(everything, w), of_columns(zero, groups, n_in)
    for _ in range(rounds):
        for rows, pull in zip(sets, pulling, strict=True):
            flat, steps = grids.from_groups(codes[rows], n_in), of_columns(step[rows], groups[rows], n_in)
            found = descend(w[rows] + pull @ missing, flat, steps, zeros[rows], grid, moment)
            codes[rows] = grids.to_groups(found, grid.group_size)
            missing[rows] = left(rows, w[rows])
        target = torch.empty_like(w)
        for rows, pull in zip(sets, pulling, strict=True):
            target[rows] = w[rows] + pull @ missing
        step = fit_steps(products.linear(target, moment), Codes(codes, step, zero, grid, n_in), moment, stored)
        missing = left(everything, w)
    return codes, step
