"""Errors through H against errors through X, and the scale search against brute force."""

import numpy as np
import pytest
import torch
from quant import recipe, search
from quant.grids import Grid, nearest
from quant.recipe import LinearStatistics, Recipe, quantize_linear
from quant.salience import Channels
from quant.search import Search, half, layer_error, row_errors, scale_for, search_scale
from tests.unit.reference import input_statistics, output_statistics, praq_salience, second_moment
from tests.unit.reference import row_errors as slow_row_errors
from tests.unit.reference import search as slow_search

WIDTHS = (1, 2, 47, 191, 192, 193, 385, 576, 1537)


def case(n_out: int, n_in: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """w [out, in] and correlated x [n, in] with a few loud channels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, n_in)) @ (np.eye(n_in) + 0.3 * rng.normal(size=(n_in, n_in)) / np.sqrt(n_in))
    return rng.normal(size=(n_out, n_in)), x * np.exp(rng.normal(size=n_in)) + rng.normal(size=n_in)


@pytest.mark.parametrize("n_in", WIDTHS)
def test_error_through_moment_equals_error_through_inputs(n_in: int) -> None:
    difference, x = case(3, n_in, 5)
    moment = torch.from_numpy(x.T @ x / len(x))
    expected = slow_row_errors(difference, x)
    d = torch.from_numpy(difference)
    np.testing.assert_allclose(row_errors(d, half(moment)).numpy(), expected, rtol=1e-10)
    assert layer_error(d, moment) == pytest.approx(expected.sum(), rel=1e-10)
    assert layer_error(d.float(), moment.float()) == pytest.approx(expected.sum(), rel=1e-4)
    torch.testing.assert_close(half(moment) + half(moment).T, moment)


def test_half_leaves_the_moment_alone() -> None:
    moment = torch.eye(200)
    half(moment)
    assert torch.equal(moment, torch.eye(200))


@pytest.mark.parametrize("n_in", WIDTHS)
def test_blocks_cover_all_columns_once(n_in: int) -> None:
    covered = [column for start, stop in search.blocks(n_in) for column in range(start, stop)]
    assert covered == list(range(n_in))
    assert len(list(search.blocks(n_in))) <= 8


def saliences(w: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
    found = input_statistics(x)
    act_abs = output_statistics(x @ w.T)["act_abs"]
    praq = praq_salience(w, act_abs, found["x_abs"], is_mlp=True)
    return {"l1": np.array(found["x_abs"]), "l2": np.array(found["x_sq"]), "praq": np.array(praq)}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(4, -1), (3, 8), (4, 7)])
@pytest.mark.parametrize("name", ["l1", "l2", "praq"])
def test_search_equals_brute_force(name: str, bits: int, group_size: int, symmetric: bool) -> None:
    w, x = case(6, 24, 30, seed=bits + group_size)
    salience = saliences(w, x)[name]
    alpha, objective, all_objectives = slow_search(w, x, salience, bits, group_size, symmetric, 20)
    if name != "praq":
        assert 0 < alpha and objective < 0.95 * all_objectives[0], "the case must be one where scaling helps"
    moment = torch.from_numpy(second_moment(x))
    found = search_scale(torch.from_numpy(w), moment, torch.from_numpy(salience), Grid(bits, group_size, symmetric), 20)
    assert found.alpha == alpha
    assert found.objective == pytest.approx(objective, rel=1e-6)
    np.testing.assert_allclose(found.scale.numpy(), salience**alpha, rtol=1e-12)
    single = search_scale(
        torch.from_numpy(w).float(), moment.float(), torch.from_numpy(salience).float(),
        Grid(bits, group_size, symmetric), 20,
    )  # fmt: skip
    assert single.alpha == alpha
    assert single.objective == pytest.approx(objective, rel=1e-3)


@pytest.mark.parametrize("n_grid", [1, 5])
def test_row_weight_counts_rows(n_grid: int) -> None:
    w, x = case(6, 24, 30)
    salience, weight = saliences(w, x)["l1"], np.array([0.0, 10.0, 0.1, 0.0, 3.0, 1.0])
    alpha, objective, _ = slow_search(w, x, salience, 3, -1, True, n_grid, weight)
    plain = slow_search(w, x, salience, 3, -1, True, n_grid)
    assert objective != pytest.approx(plain[1], rel=0.1), "the weights must matter"
    arguments = (*map(torch.from_numpy, (w, second_moment(x), salience)), Grid(3, -1, True), n_grid)
    found = search_scale(*arguments, torch.from_numpy(weight))
    assert (found.alpha, found.objective) == (alpha, pytest.approx(objective, rel=1e-6))
    even = search_scale(*arguments, torch.ones(6, dtype=torch.float64))
    assert (even.alpha, even.objective) == (plain[0], pytest.approx(plain[1], rel=1e-6))


def test_smaller_alpha_on_a_tie() -> None:
    w, x = case(4, 16, 20)
    moment = torch.from_numpy(second_moment(x))
    ones = torch.ones(16, dtype=torch.float64)  # every α gives the same weight
    assert search_scale(torch.from_numpy(w), moment, ones, Grid(4, -1, True), 20).alpha == 0
    # nothing to lose: all objectives are 0
    zero = search_scale(torch.zeros(4, 16, dtype=torch.float64), moment, ones * 3, Grid(4, -1, False), 20)
    assert (zero.alpha, zero.objective) == (0, 0)


def test_alpha_zero_is_plain_rounding() -> None:
    w, x = case(6, 24, 30)
    moment, salience = torch.from_numpy(second_moment(x)), torch.rand(24, dtype=torch.float64)
    assert torch.equal(scale_for(salience, 0.0), torch.ones(24, dtype=torch.float64))
    # quiet channels made loud: any scaling only harms
    backwards = torch.from_numpy(1 / (x**2).mean(0))
    grid = Grid(4, -1, False)
    found = search_scale(torch.from_numpy(w), moment, backwards, grid, 20)
    assert found.alpha == 0
    difference = torch.from_numpy(w) - nearest(torch.from_numpy(w), grid)
    assert found.objective == pytest.approx(layer_error(difference, moment) / 6, rel=1e-12)


def test_scale_has_a_floor_and_survives_dead_channels() -> None:
    assert scale_for(torch.tensor([0.0, 1e-12, 4.0]), 0.5).tolist() == pytest.approx([1e-5, 1e-5, 2.0])
    assert scale_for(torch.tensor([0.0, 4.0]), 0.0).tolist() == [1, 1]
    w, x = case(6, 24, 30)
    x[:, :3] = 0
    salience = np.abs(x).mean(0)
    alpha, objective, _ = slow_search(w, x, salience, 4, -1, True, 20)
    found = search_scale(*map(torch.from_numpy, (w, second_moment(x), salience)), Grid(4, -1, True), 20)
    assert (found.alpha, found.objective) == (alpha, pytest.approx(objective, rel=1e-6))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("step", range(21))
def test_inverse_scale_is_never_forgotten(monkeypatch: pytest.MonkeyPatch, step: int, symmetric: bool) -> None:
    """On a grid so fine that rounding costs nothing, every α must give the weight back."""
    w, x = (torch.from_numpy(a) for a in case(6, 24, 30))
    salience = x.square().mean(0)
    assert salience.max() / salience.min() > 50
    scale = scale_for(salience, step / 20)
    monkeypatch.setattr(recipe, "search_scale", lambda *_, **__: Search(step / 20, scale, 0.0))
    channels = Channels(*(salience,) * 3, *(torch.zeros(6),) * 4, is_mlp=True)
    fine = Recipe("l2", bits=8, group_size=1, symmetric=symmetric, n_grid=20, scope="linear", rounding="nearest")
    quantized = quantize_linear(w, LinearStatistics(channels, x.T @ x / len(x)), fine)
    assert quantized.alpha == step / 20
    torch.testing.assert_close(quantized.dequantize(), w, rtol=1e-10, atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_search_undoes_its_scale(symmetric: bool) -> None:
    """n_grid=1 with a salience that helps: α = 1 wins only if the candidate is scaled back before it is judged."""
    w, x = case(6, 24, 30)
    salience = (x**2).mean(0) ** 0.25 * 100  # far from 1, so that a forgotten inverse is far off
    alpha, objective, objectives = slow_search(w, x, salience, 4, -1, symmetric, 1)
    assert alpha == 1 and objectives[1] < objectives[0]
    found = search_scale(*map(torch.from_numpy, (w, second_moment(x), salience)), Grid(4, -1, symmetric), 1)
    assert (found.alpha, found.objective) == (1, pytest.approx(objective, rel=1e-6))
