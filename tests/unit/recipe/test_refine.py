"""Refinement against trying every code and against least squares on the inputs; the corrected target against ridge
regression."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from quant.calibration.second_moments import layer_error
from quant.errors import InputError
from quant.recipe import grids
from quant.recipe.correction import corrected
from quant.recipe.grids import Codes, Grid
from quant.recipe.refine import FLOOR, NARROWEST, WIDEST, fit_steps, refine, step_system, whole_matrix
from tests.unit import reference
from tests.unit.reference import case


def start(w: np.ndarray, grid: Grid) -> tuple[Tensor, Codes]:
    """Groups, and nearest codes, ranges narrowed so that some are cut."""
    groups = grids.to_groups(torch.from_numpy(w), grid.group_size)
    step, zero = grids.fit(groups, grid)
    step = step * 0.8
    return groups, Codes(grids.encode(groups, step, zero, grid), step, zero, grid, w.shape[1])


def error(groups: Tensor, codes: Codes, moment: np.ndarray) -> float:
    difference = grids.from_groups(groups, len(moment)) - codes.dequantize()
    return layer_error(difference, torch.from_numpy(moment + FLOOR * moment.diagonal().mean() * np.eye(len(moment))))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("n_out", "n_in", "group_size"), [(3, 5, -1), (4, 24, 8), (3, 30, 7), (2, 150, 64)])
def test_a_round_equals_trying_every_code(n_out: int, n_in: int, group_size: int, bits: int, symmetric: bool) -> None:
    w, moment = case(n_out, n_in, seed=n_in)
    grid = Grid(bits, group_size, symmetric)
    groups, codes = start(w, grid)
    flat = [grids.from_groups(t.expand_as(groups), n_in).numpy() for t in codes[:3]]
    wanted, steps = reference.refined(w, *flat, bits, group_size, symmetric, moment)
    found, new, *_ = refine(groups, codes, torch.tensor(moment), 1)
    assert np.array_equal(grids.from_groups(found, n_in).numpy(), wanted)
    old = codes.step[:, :, 0].numpy()
    inside = ((steps >= NARROWEST * old) & (steps <= WIDEST * old)).all(1)
    assert inside.any()
    np.testing.assert_allclose(new[:, :, 0].numpy()[inside], steps[inside], rtol=1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_every_round_is_better(seed: int) -> None:
    w, moment = case(8, 30 + 8 * seed, seed)
    grid = Grid((2, 3, 4, 8)[seed % 4], (-1, 16, 7)[seed % 3], bool(seed % 2))
    groups, held = start(w, grid)
    errors = [error(groups, held, moment)]
    for _ in range(3):
        held = refine(groups, held, torch.tensor(moment), 1)
        errors.append(error(groups, held, moment))
    assert errors[1] < 0.9 * errors[0] and errors == sorted(errors, reverse=True)
    codes = held.codes
    assert codes.min() >= grid.lowest and codes.max() <= grid.highest and torch.equal(codes, codes.round())


def test_steps_are_those_of_the_file() -> None:
    w, moment = case(6, 40)
    grid = Grid(3, 8, False)
    groups, codes = start(w, grid)
    stored = partial(grids.stored_step, dtype=torch.float16)
    new = refine(groups, codes, torch.tensor(moment), 2, stored).step
    assert torch.equal(new, stored(new)) and not torch.equal(new, codes.step)


@pytest.mark.parametrize(("n_out", "grid"), [(7, Grid(4, 8, False)), (300, Grid(8, 128, True, "fp8"))])
def test_systems_of_rows_are_solved_in_portions(n_out: int, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that share a step together."""
    w, moment = map(torch.from_numpy, case(n_out, 256))
    groups = grids.to_groups(w, grid.group_size)
    step, zero = grids.fit(groups, grid)
    codes = Codes(grids.encode(groups, step, zero, grid), step, zero, grid, 256)
    given = w @ moment, codes, moment, partial(grids.stored_step, dtype=torch.float16)
    found = fit_steps(*given)
    assert not torch.equal(found, step)
    monkeypatch.setattr("quant.recipe.refine.AT_ONCE", 3 * 8 * step.shape[1] ** 2)
    torch.testing.assert_close(fit_steps(*given), found, rtol=1e-3, atol=0)


@pytest.mark.parametrize("n_in", [256, 250])
def test_a_system_of_all_groups_at_once_is_that_of_one_after_another(n_in: int) -> None:
    w, moment = map(torch.from_numpy, case(7, n_in))
    _, held = start(w.numpy(), Grid(4, 64, False))
    units = grids.to_groups(grids.from_groups(held.codes - held.zero, n_in), 64)
    torch.testing.assert_close(whole_matrix(units, moment), step_system(units, w @ moment, moment)[0])


def test_steps_of_no_use_stay() -> None:
    """A group of zero codes, a row of zeros, and steps far from what would be best."""
    w, moment = case(4, 24)
    w[0, :8], w[1] = 0, 0
    grid = Grid(4, 8, False)
    _, held = start(w, grid)
    codes, step, zero, *_ = held
    codes[0, 0], codes[1] = zero[0, 0], zero[1]
    step[3, 1] *= 100
    new = fit_steps(torch.from_numpy(w @ moment), held, torch.from_numpy(moment))
    assert new[0, 0] == step[0, 0] and torch.equal(new[1], step[1]) and new[3, 1] == step[3, 1]
    assert torch.isfinite(new).all() and (new > 0).all() and not torch.equal(new[2], step[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_that_are_never_there(dtype: torch.dtype) -> None:
    w, moment = case(4, 24)
    moment[:, 3] = moment[3] = 0
    grid = Grid(4, 8, False)
    for given in (moment, np.zeros_like(moment)):
        groups, held = start(w, grid)
        own = Codes(*(t.to(dtype) for t in held[:3]), grid, 24)
        found, new, *_ = refine(groups.to(dtype), own, torch.tensor(given).to(dtype), 3)
        assert torch.isfinite(found).all() and torch.isfinite(new).all()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_target_is_a_ridge_regression(share: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 20)) @ rng.normal(size=(20, 20))
    quantised = x + 0.3 * rng.normal(size=x.shape) @ rng.normal(size=(20, 20))
    weights = [rng.normal(size=(n, 20)) for n in (3, 7)]
    cross, moment = (torch.from_numpy(left.T @ quantised / len(x)) for left in (x, quantised))
    found = corrected([torch.from_numpy(w) for w in weights], cross.clone(), moment, share)
    for w, target in zip(weights, found, strict=True):
        expected = reference.corrected(w, x, quantised, share)
        np.testing.assert_allclose(target.numpy(), expected, rtol=1e-9, atol=1e-12)
        weight = torch.from_numpy(w)
        (of_outputs,) = corrected([weight], weight @ cross, moment, share)
        np.testing.assert_allclose(of_outputs.numpy(), expected, rtol=1e-9, atol=1e-12)
        both = torch.stack([moment, moment]), torch.stack([weight @ cross, weight @ cross])
        torch.testing.assert_close(corrected([weight], both[1], both[0], share)[0], of_outputs)


def test_without_damage_nothing_is_corrected() -> None:
    """Nor for an input that is never there."""
    w, moment = case(4, 24)
    moment[:, 3] = moment[3] = 0
    w, h = torch.from_numpy(w), torch.from_numpy(moment)
    assert torch.equal(corrected([w], h.clone(), h, 1.0)[0], w)
    (found,) = corrected([w], 0.9 * h, h, 1.0)
    assert torch.equal(found[:, 3], w[:, 3]) and not torch.allclose(found, w)


def test_a_moment_that_is_none_is_refused() -> None:
    nothing = torch.full((4, 4), -1.0)
    with pytest.raises(InputError, match="not positive definite even with damp 1;"):
        corrected([torch.ones(2, 4)], nothing.clone(), nothing, 0.5)
