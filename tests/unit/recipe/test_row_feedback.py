"""Rows rounded together: targets and codes by a slow reference, and what it does to the loss that it is for."""

import numpy as np
import pytest
import torch
from torch import Tensor

from quant.calibration.reader import LinearStatistics
from quant.recipe import grids
from quant.recipe.context import Context
from quant.recipe.grids import Codes, Grid
from quant.recipe.linear import round_linear
from quant.recipe.recipe import Recipe
from quant.recipe.refine import descend, fit_steps, refine
from quant.recipe.roundings.gptq import gptq
from quant.recipe.row_feedback import DAMP, SETS, mixed, round_rows
from tests.unit.recipe.cases import PLAIN

GRID, DAMPING = Grid(3, 5, False), 0.01


def drawn(n_out: int, n_in: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W, H and R, the latter two of channels that go together."""
    rng = np.random.default_rng(seed)
    moments = []
    for n in (n_in, n_out):
        x = rng.normal(size=(4 * n, n)) + 2 * rng.normal(size=(4 * n, 1)) * rng.normal(size=n)
        moments.append(x.T @ x / len(x))
    return rng.normal(size=(n_out, n_in)), *moments


def start(w: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    groups = grids.to_groups(torch.from_numpy(w), GRID.group_size)
    return groups, *grids.fit(groups, GRID)


def whole(t: Tensor, n_in: int) -> np.ndarray:
    """A group's number, or a weight's, [out, in]."""
    return grids.from_groups(t.expand(-1, -1, GRID.group_size), n_in).numpy()


def slow_target(w: np.ndarray, missing: np.ndarray, moment: np.ndarray, rows: list[int], of: list[int]) -> np.ndarray:
    """What `rows` come near to, given the errors of the rows `of`."""
    damped = moment[np.ix_(rows, rows)] + DAMP * moment[np.ix_(rows, rows)].diagonal().mean() * np.eye(len(rows))
    return w[rows] + np.linalg.solve(damped, moment[np.ix_(rows, of)] @ missing[of])


def slow_columns(
    work: np.ndarray, steps: np.ndarray, zeros: np.ndarray, moment: np.ndarray, mean: np.ndarray
) -> np.ndarray:
    """Codes of GPTQ's column loop on steps that are given; mean: of all rows' squared steps, by column."""
    n_in, codes = work.shape[1], np.zeros(work.shape)
    inverse = np.linalg.inv(moment + DAMPING * moment.diagonal().mean() * np.eye(n_in))
    order = sorted(range(n_in), key=lambda j: -moment[j, j] * mean[j])
    for at, j in enumerate(order):
        codes[:, j] = np.clip(np.round(work[:, j] / steps[:, j]) + zeros[:, j], 0, GRID.highest)
        error = (work[:, j] - (codes[:, j] - zeros[:, j]) * steps[:, j]) / inverse[j, j]
        later = order[at + 1 :]
        work[:, later] -= np.outer(error, inverse[j, later])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


@pytest.mark.parametrize(("n_out", "n_in"), [(10, 12), (3, 5), (13, 5)])
def test_codes_are_those_of_the_slow_way(n_out: int, n_in: int) -> None:
    """R is damped as a whole there, so that each later set is solved for with the same damping."""
    w, h, r = drawn(n_out, n_in, 0)
    groups, step, zero = start(w)
    context = Context(torch.from_numpy(h))
    codes, _, damp = round_rows(groups, step, zero, GRID, context, torch.from_numpy(r), DAMPING, 0)
    steps, zeros = whole(step, n_in), whole(zero, n_in)
    damped = r + DAMP * r.diagonal().mean() * np.eye(n_out)
    sets = [list(range(k, n_out, SETS)) for k in range(min(SETS, n_out))]
    missing, before = np.zeros_like(w), list[int]()
    for k, rows in enumerate(sets):
        rest = [row for each in sets[k:] for row in each]
        target = w[rest] + np.linalg.solve(damped[np.ix_(rest, rest)], damped[np.ix_(rest, before)] @ missing[before])
        target = target[: len(rows)]
        found = slow_columns(target.copy(), steps[rows], zeros[rows], h, (steps**2).mean(0))
        np.testing.assert_array_equal(whole(codes[rows], n_in), found)
        missing[rows] = w[rows] - (found - zeros[rows]) * steps[rows]
        before += rows
    assert damp == DAMPING


def test_refinement_hears_of_all_other_rows() -> None:
    w, h, r = drawn(10, 12, 1)
    groups, step, zero = start(w)
    context, moment = Context(torch.from_numpy(h)), torch.from_numpy(r)
    given = groups, step, zero, GRID, context, moment, DAMPING
    found, steps, _ = round_rows(*given, 1, lambda t: t.float().double())
    codes, step, _ = round_rows(*given, 0)

    below = torch.from_numpy(h + 1e-4 * h.diagonal().mean() * np.eye(12))

    def targets() -> Tensor:
        """Of each row, given the errors of all rows of other sets."""
        missing = w - (whole(codes, 12) - whole(zero, 12)) * whole(step, 12)
        wanted = np.zeros_like(w)
        for k in range(SETS):
            others = [j for j in range(10) if j % SETS != k]
            wanted[k::SETS] = slow_target(w, missing, r, list(range(k, 10, SETS)), others)
        return torch.from_numpy(wanted)

    for k in range(SETS):
        own = (torch.from_numpy(whole(each[k::SETS], 12)) for each in (codes, step, zero))
        codes[k::SETS] = grids.to_groups(descend(targets()[k::SETS], *own, GRID, below), GRID.group_size)
    step = fit_steps(targets() @ below, Codes(codes, step, zero, GRID, len(below)), below, lambda t: t.float().double())
    assert torch.equal(codes, found) and torch.equal(step, steps)


@pytest.mark.parametrize("seed", range(3))
def test_it_lowers_what_errors_cost_together(seed: int) -> None:
    """Rows next to each other go together, as those of a head do."""
    w, h, _ = drawn(24, 20, seed)
    r = 0.8 ** np.abs(np.subtract.outer(range(24), range(24)))
    groups, step, zero = start(w)
    context, moment = Context(torch.from_numpy(h)), torch.from_numpy(r)

    def cost(codes: Tensor, step: Tensor) -> float:
        d = w - (whole(codes, 20) - whole(zero, 20)) * whole(step, 20)
        return float(np.trace(r @ d @ h @ d.T))

    alone = gptq(groups, step, zero, GRID, context, damp=DAMPING).codes
    together, _, _ = round_rows(groups, step, zero, GRID, context, moment, DAMPING, 0)
    assert cost(together, step) < 0.8 * cost(alone, step)
    refined = refine(groups, Codes(alone, step, zero, GRID, 20), context.copied(), 3)
    both, steps, _ = round_rows(groups, step, zero, GRID, context, moment, DAMPING, 3)
    assert cost(both, steps) < 0.8 * cost(*refined[:2])


def test_the_share_is_of_a_mean_of_one() -> None:
    r = torch.tensor([[4.0, 1.0], [1.0, 2.0]])
    torch.testing.assert_close(mixed(r, 0.75), torch.tensor([[1.25, 0.25], [0.25, 0.75]]))
    assert torch.equal(mixed(torch.zeros(2, 2), 0.7), 0.3 * torch.eye(2))


def test_outputs_that_cost_nothing() -> None:
    """A dead neuron's rows are zero in R; the others are as they would be without."""
    w, h, r = drawn(6, 5, 2)
    r[:3] = r[:, :3] = 0
    groups, step, zero = start(w)
    context = Context(torch.from_numpy(h))
    codes, steps, _ = round_rows(groups, step, zero, GRID, context, mixed(torch.from_numpy(r), 0.7), DAMPING, 2)
    assert torch.isfinite(codes).all() and torch.isfinite(steps).all()


def test_rows_of_some_linears_alone() -> None:
    entry = PLAIN | {"rounding": "gptq", "row_feedback": 0.7, "row_linears": "q_proj|k_proj"}
    recipe = Recipe.of(entry | {"tensor_types": [{"linears": "v_proj", **Grid(3, 5, False)._asdict()}]})
    found = {name: recipe.at(f"model.layers.0.self_attn.{name}") for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    assert {name: each.row_feedback for name, each in found.items()} == {
        "q_proj": 0.7,
        "k_proj": 0.7,
        "v_proj": 0.0,
        "o_proj": 0.0,
    }
    assert found["v_proj"].bits == 3 and Recipe.of(entry | {"row_linears": ""}).at("o_proj").row_feedback == 0.7


def test_a_linear_without_a_moment_of_rows_is_rounded_as_ever() -> None:
    """As all but q and k with `row_moment: attention`."""
    w, h, r = (torch.from_numpy(each).float() for each in drawn(8, 10, 3))
    own, without = (Recipe.of(PLAIN | {"rounding": "gptq", "refine": 1, "row_feedback": share}) for share in (0.7, 0.0))

    def codes(recipe: Recipe, rows: Tensor | None) -> Tensor:
        return round_linear(w, None, LinearStatistics(moment=h, rows=rows), recipe, torch.Generator()).codes

    assert torch.equal(codes(own, None), codes(without, r)) and not torch.equal(codes(own, r), codes(own, None))
