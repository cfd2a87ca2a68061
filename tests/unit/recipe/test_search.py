"""Errors through H against errors through X, and the scale search against brute force."""

from functools import partial

import numpy as np
import pytest
import torch

from quant.calibration.second_moments import column_blocks, from_triangle, halves, layer_error, row_errors, to_triangle
from quant.recipe import search
from quant.recipe.grids import Grid, nearest
from quant.recipe.search import Search, Target, scale_for, search_scale
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
    np.testing.assert_allclose(row_errors(d, halves(moment)).numpy(), expected, rtol=1e-10)
    assert layer_error(d, moment) == pytest.approx(expected.sum(), rel=1e-10)
    assert layer_error(d.float(), moment.float()) == pytest.approx(expected.sum(), rel=1e-4)
    lower = torch.zeros_like(moment)
    for (start, stop), block in zip(column_blocks(n_in), halves(moment), strict=True):
        lower[start:stop, :stop] = block
    torch.testing.assert_close(lower + lower.T, moment)


def test_halves_leave_the_moment_alone() -> None:
    moment = torch.eye(200)
    halves(moment)
    assert torch.equal(moment, torch.eye(200))


@pytest.mark.parametrize("n_in", WIDTHS)
def test_a_triangle_is_the_whole_moment(n_in: int) -> None:
    moment = torch.randn(n_in, n_in, generator=torch.Generator().manual_seed(n_in))
    moment = moment + moment.T
    before, triangle = moment.clone(), to_triangle(moment)
    assert triangle.shape == ((n_in + 1) // 2, n_in + 1)
    assert torch.equal(from_triangle(triangle), before) and torch.equal(moment, before)


@pytest.mark.parametrize("n_in", WIDTHS)
def test_blocks_cover_all_columns_once(n_in: int) -> None:
    covered = [column for start, stop in column_blocks(n_in) for column in range(start, stop)]
    assert covered == list(range(n_in))
    assert len(list(column_blocks(n_in))) <= 8


def searched(
    w: np.ndarray,
    x: np.ndarray,
    salience: np.ndarray,
    grid: Grid,
    n_grid: int = 20,
    row_weight: np.ndarray | None = None,
    dtype: torch.dtype = torch.float64,
) -> Search:
    """search_scale of one linear, on arrays."""
    moment = torch.from_numpy(second_moment(x)).to(dtype)
    weight = None if row_weight is None else torch.from_numpy(row_weight).to(dtype)
    target = Target(torch.from_numpy(w).to(dtype), moment, weight)
    return search_scale([target], torch.from_numpy(salience).to(dtype), grid, n_grid)


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
        assert alpha > 0 and objective < 0.95 * all_objectives[0], "the case must be one where scaling helps"
    grid = Grid(bits, group_size, symmetric)
    found = searched(w, x, salience, grid)
    assert found.alpha == alpha
    assert found.objective == pytest.approx(objective, rel=1e-6)
    np.testing.assert_allclose(found.scale.numpy(), salience**alpha, rtol=1e-12)
    single = searched(w, x, salience, grid, dtype=torch.float32)
    assert single.alpha == alpha
    assert single.objective == pytest.approx(objective, rel=1e-3)


@pytest.mark.parametrize("n_grid", [1, 5])
def test_row_weight_counts_rows(n_grid: int) -> None:
    w, x = case(6, 24, 30)
    salience, weight = saliences(w, x)["l1"], np.array([0.0, 10.0, 0.1, 0.0, 3.0, 1.0])
    alpha, objective, _ = slow_search(w, x, salience, 3, -1, True, n_grid, weight)
    plain = slow_search(w, x, salience, 3, -1, True, n_grid)
    assert objective != pytest.approx(plain[1], rel=0.1), "the weights must matter"
    found = searched(w, x, salience, Grid(3, -1, True), n_grid, weight)
    assert (found.alpha, found.objective) == (alpha, pytest.approx(objective, rel=1e-6))
    even = searched(w, x, salience, Grid(3, -1, True), n_grid, np.ones(6))
    assert (even.alpha, even.objective) == (plain[0], pytest.approx(plain[1], rel=1e-6))


def test_smaller_alpha_on_a_tie() -> None:
    w, x = case(4, 16, 20)
    ones = np.ones(16)  # every α gives the same weight
    assert searched(w, x, ones, Grid(4, -1, True)).alpha == 0
    # nothing to lose: all objectives are 0
    zero = searched(np.zeros((4, 16)), x, ones * 3, Grid(4, -1, False))
    assert (zero.alpha, zero.objective) == (0, 0)


def test_alpha_zero_is_plain_rounding() -> None:
    w, x = case(6, 24, 30)
    assert torch.equal(scale_for(torch.linspace(0.1, 9, 24), 0.0), torch.ones(24))
    grid = Grid(4, -1, False)
    found = searched(w, x, 1 / (x**2).mean(0), grid)  # quiet channels made loud: any scaling only harms
    assert found.alpha == 0
    difference = torch.from_numpy(w) - nearest(torch.from_numpy(w), grid)
    assert found.objective == pytest.approx(slow_row_errors(difference.numpy(), x).sum() / 6, rel=1e-10)


@pytest.mark.parametrize("grid", [Grid(4, 8, False), Grid(8, 128, True, "fp8")])
def test_a_scale_that_has_lost_is_given_up_and_the_same_one_wins(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two linears, judged a few rows at a time on several threads, against each candidate's whole error."""
    w, x = case(150, 48, 60)
    moment, weight = torch.from_numpy(second_moment(x)), torch.rand(50, generator=torch.Generator().manual_seed(0))
    targets = [Target(torch.from_numpy(w[:100]), moment), Target(torch.from_numpy(w[100:]), moment, weight)]
    salience = torch.from_numpy((x**2).mean(0))
    looked: list[float] = []
    errors = search.Race.error
    monkeypatch.setattr(search.Race, "error", lambda *a: looked.append(errors(*a)) or looked[-1])
    monkeypatch.setattr(search, "PART", 48 * 30)
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(search_scale(targets, salience, grid, 20, clip=True))
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)
    assert found[0][::2] == found[1][::2] and torch.equal(found[0].scale, found[1].scale)
    scales = torch.stack([scale_for(salience, i / 20) for i in range(21)])
    whole = sum(search.candidate_errors(target, scales, grid, True) for target in targets)
    assert found[0].alpha == int(whole.argmin()) / 20 and found[0].objective == pytest.approx(whole.min().item())
    assert 5 < sum(map(np.isinf, looked[:21])) < 20 and np.isfinite(looked[0])


def test_scale_has_a_floor_and_survives_dead_channels() -> None:
    assert scale_for(torch.tensor([0.0, 1e-12, 4.0]), 0.5).tolist() == pytest.approx([1e-5, 1e-5, 2.0])
    assert scale_for(torch.tensor([0.0, 4.0]), 0.0).tolist() == [1, 1]
    w, x = case(6, 24, 30)
    x[:, :3] = 0
    salience = np.abs(x).mean(0)
    alpha, objective, _ = slow_search(w, x, salience, 4, -1, True, 20)
    found = searched(w, x, salience, Grid(4, -1, True))
    assert (found.alpha, found.objective) == (alpha, pytest.approx(objective, rel=1e-6))


@pytest.mark.parametrize("symmetric", [True, False])
def test_search_undoes_its_scale(symmetric: bool) -> None:
    """n_grid=1 with a salience that helps: α = 1 wins only if the candidate is scaled back before it is judged."""
    w, x = case(6, 24, 30)
    salience = (x**2).mean(0) ** 0.25 * 100  # far from 1, so that a forgotten inverse is far off
    alpha, objective, objectives = slow_search(w, x, salience, 4, -1, symmetric, 1)
    assert alpha == 1 and objectives[1] < objectives[0]
    found = searched(w, x, salience, Grid(4, -1, symmetric), 1)
    assert (found.alpha, found.objective) == (1, pytest.approx(objective, rel=1e-6))


def narrow_pairs(moment: torch.Tensor, d: torch.Tensor, lower: list[torch.Tensor]) -> torch.Tensor:
    """row_errors as a GPU's search has them: what pairs of inputs add, by factors in float16."""
    diagonal = moment.diagonal()
    unit = diagonal.sqrt()
    correlations = moment / unit / unit[:, None]
    narrow = (d * unit * (60000 / (d * unit).abs().max())).half().float()
    pairs = torch.linalg.vecdot(narrow @ correlations.fill_diagonal_(0).half().float(), narrow, dim=1)
    return d.square() @ diagonal + pairs * ((d * unit).abs().max() / 60000) ** 2


@pytest.mark.parametrize("grid", [Grid(4, 64, False), Grid(3, -1, True), Grid(8, 32, False)])
def test_float16_pairs_choose_scales_as_good(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's search loses by them: objectives move by less than 1e-4, and the α that it takes is worse than the
    best one by less than that."""
    exact = search.row_errors
    for seed in range(8):
        w, x = case(32, 256, 300, seed)
        target = Target(*(torch.from_numpy(t).float() for t in (w, second_moment(x))))
        salience = torch.from_numpy((x**2).mean(0)).float()
        best = search_scale([target], salience, grid, 20)
        monkeypatch.setattr(search, "row_errors", partial(narrow_pairs, target.moment))
        rounded = search_scale([target], salience, grid, 20)
        monkeypatch.setattr(search, "row_errors", exact)
        assert rounded.objective == pytest.approx(best.objective, rel=1e-4) and rounded.objective != best.objective
        d = nearest(target.w * rounded.scale, grid) / rounded.scale - target.w
        assert layer_error(d, target.moment) / 32 == pytest.approx(best.objective, rel=1e-4)
