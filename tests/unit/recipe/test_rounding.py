"""GPTQ against the textbook's column loop, greedy flips against every K."""

import numpy as np
import pytest
import torch
from torch import Tensor

from quant.calibration.second_moments import layer_error
from quant.errors import InputError
from quant.recipe import grids
from quant.recipe.choices import ROUNDINGS
from quant.recipe.context import Context
from quant.recipe.functions import function_of
from quant.recipe.grids import Grid
from quant.recipe.inverse import flip_, inverse_factor
from quant.recipe.roundings.gptq import gptq
from quant.recipe.roundings.greedy_flip import greedy_flip
from tests.unit import reference
from tests.unit.recipe.cases import case as linear_case
from tests.unit.recipe.cases import quantized, statistics_of
from tests.unit.reference import case

SHAPES = [(3, 5, -1), (4, 16, 8), (5, 30, 7), (2, 128, 32), (3, 150, 64), (2, 300, 128), (3, 257, -1)]


def rounded(w: np.ndarray, grid: Grid, name: str, context: Context, **own: float) -> tuple[Tensor, ...]:
    """Codes [out, in] and the weight that they stand for; step and zero of the full range."""
    groups = grids.to_groups(torch.from_numpy(w), grid.group_size)
    step, zero = grids.fit(groups, grid)
    codes = function_of("roundings", name, own)(groups.clone(), step, zero, grid, context).codes
    assert codes.shape == groups.shape and codes.dtype == groups.dtype
    whole = (grids.from_groups(t, w.shape[1]) for t in (codes, grids.decode(codes, step, zero)))
    return *whole, step, zero


def by_gptq(w: np.ndarray, moment: np.ndarray, grid: Grid, damp: float = 0.01) -> tuple[Tensor, Tensor]:
    return rounded(w, grid, "gptq", Context(torch.from_numpy(moment)), damp=damp)[:2]


def damp_taken(w: np.ndarray, moment: np.ndarray, damp: float) -> float | None:
    grid, groups = Grid(4, -1, False), torch.from_numpy(w)[:, None].clone()
    context = Context(torch.from_numpy(moment))
    return gptq(groups, *grids.fit(groups, grid), grid, context, damp=damp).damp


def by_flips(w: np.ndarray, mean: np.ndarray, grid: Grid, outlier_percent: float) -> tuple[Tensor, Tensor]:
    return rounded(w, grid, "greedy_flip", Context(x_mean=torch.from_numpy(mean)), outlier_percent=outlier_percent)[:2]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("n_out", "n_in", "group_size"), SHAPES)
def test_gptq_equals_the_textbook(n_out: int, n_in: int, group_size: int, bits: int, symmetric: bool) -> None:
    w, moment = case(n_out, n_in, seed=n_in)
    grid = Grid(bits, group_size, symmetric)
    codes, _ = by_gptq(w, moment, grid)
    assert np.array_equal(codes.numpy(), reference.gptq(w, moment, bits, group_size, symmetric, 0.01, True))
    assert codes.min() >= grid.lowest and codes.max() <= grid.highest
    if n_in > 100:
        assert not torch.equal(codes, torch.from_numpy(reference.by_column(w, bits, group_size, symmetric)[0]))


@pytest.mark.parametrize(("group_size", "same"), [(-1, True), (8, False)])
def test_columns_go_by_what_rounding_leaves_in_them(group_size: int, same: bool) -> None:
    """H_jj·mean step²: with one range per output channel that is activation order, with groups it is not."""
    w, moment = case(6, 40)
    codes = by_gptq(w, moment, Grid(3, group_size, False))[0].numpy()
    assert np.array_equal(codes, reference.gptq(w, moment, 3, group_size, False, 0.01, True))
    assert np.array_equal(codes, reference.gptq(w, moment, 3, group_size, False, 0.01)) == same


@pytest.mark.parametrize("damp", [0.001, 0.3])
def test_damp_counts(damp: float) -> None:
    w, moment = case(6, 40)
    codes, _ = by_gptq(w, moment, Grid(3, 8, False), damp)
    assert np.array_equal(codes.numpy(), reference.gptq(w, moment, 3, 8, False, damp, True))
    assert not torch.equal(codes, by_gptq(w, moment, Grid(3, 8, False))[0])


@pytest.mark.parametrize("seed", range(30))
def test_gptq_is_no_worse_than_nearest(seed: int) -> None:
    w, moment = case(8, 16 + 8 * seed, seed)
    grid = Grid((2, 3, 4, 8)[seed % 4], (-1, 16, 32)[seed % 3], bool(seed % 2))
    h, original = torch.from_numpy(moment), torch.from_numpy(w)
    plain = layer_error(original - grids.nearest(original, grid), h)
    assert layer_error(original - by_gptq(w, moment, grid)[1], h) <= plain


def test_uncorrelated_inputs_have_nothing_to_feed_back() -> None:
    w, _ = case(4, 200)
    codes, _ = by_gptq(w, np.diag(np.linspace(1, 9, 200)), Grid(4, 32, False))
    assert np.array_equal(codes.numpy(), reference.by_column(w, 4, 32, False)[0])


@pytest.mark.parametrize("n", [1, 7, 130])
def test_inverse_factor(n: int) -> None:
    _, moment = case(1, n)
    factor, damp = inverse_factor(torch.from_numpy(moment.copy()), 0.01)
    damped = moment + 0.01 * moment.diagonal().mean() * np.eye(n)
    assert damp == 0.01 and torch.equal(factor, factor.triu())
    np.testing.assert_allclose((factor.T @ factor).numpy() @ damped, np.eye(n), atol=1e-9)
    flipped, _ = inverse_factor(torch.from_numpy(moment).flip(0, 1), 0.01, flipped=True)
    torch.testing.assert_close(flipped, factor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_a_moment_is_put_in_order_and_flipped_by_rows(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever portions, to the same bits; its copy is the caller's own."""
    generator = torch.Generator().manual_seed(n)
    h, inverse = torch.rand(n, n, generator=generator), torch.rand(n, generator=generator)
    order, before = torch.randperm(n, generator=generator), h.clone()
    for at_once in (2**27, 12 * n, 1):
        monkeypatch.setattr("quant.recipe.context.AT_ONCE", at_once)
        monkeypatch.setattr("quant.recipe.inverse.AT_ONCE", at_once)
        for context in (Context(h), Context(h, inverse=inverse)):
            whole = context.moment
            assert torch.equal(context.diagonal, whole.diagonal())
            assert torch.equal(context.copied(), whole) and torch.equal(context.copied(order), whole[order][:, order])
            assert torch.equal(flip_(context.copied()), whole.flip(0, 1))
    assert torch.equal(h, before)


def test_the_weight_and_the_moment_are_left_alone() -> None:
    w, moment = map(torch.from_numpy, case(3, 150))
    before, grid = (w.clone(), moment.clone()), Grid(3, -1, False)
    groups = grids.to_groups(w, -1)
    gptq(groups, *grids.fit(groups, grid), grid, Context(moment), damp=0.01)
    assert torch.equal(w, before[0]) and torch.equal(moment, before[1])


def indefinite(n: int, least: float) -> np.ndarray:
    """A symmetric matrix of ones on the diagonal with one eigenvalue of `least`, as rounding errors may leave it."""
    whole = np.full((n, n), -(1 - least) / (n - 1))
    np.fill_diagonal(whole, 1.0)
    return whole


@pytest.mark.parametrize(("least", "taken"), [(-0.05, 0.1), (-0.5, 1.0)])
def test_damped_more_where_needed(least: float, taken: float) -> None:
    w, moment = case(4, 12)[0], indefinite(12, least)
    codes, _ = by_gptq(w, moment, Grid(4, -1, False))
    assert inverse_factor(torch.from_numpy(moment.copy()), 0.01)[1] == pytest.approx(taken)
    assert damp_taken(w, moment, 0.01) == pytest.approx(taken)
    assert np.array_equal(codes.numpy(), reference.gptq(w, moment, 4, -1, False, taken, True))


@pytest.mark.parametrize("kind", ["zeros", "rank one"])
def test_singular_moments(kind: str) -> None:
    """The usual damping mends them; where there is almost none, as much is taken as is needed, and said."""
    w, moment = case(4, 160)
    row = np.random.default_rng(1).normal(size=160)
    moment = np.outer(row, row) if kind == "rank one" else moment
    if kind == "zeros":
        moment[:100] = moment[:, :100] = 0
    codes, _ = by_gptq(w, moment, Grid(4, 32, False))
    assert damp_taken(w, moment, 0.01) == 0.01
    assert np.array_equal(codes.numpy(), reference.gptq(w, moment, 4, 32, False, 0.01, True))
    codes, _ = by_gptq(w, moment, Grid(4, 32, False), 1e-20)
    assert (damp_taken(w, moment, 1e-20) > 1e-20) == (kind == "rank one")
    assert torch.isfinite(codes).all() and codes.min() >= 0 and codes.max() <= 15


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_moments_of_no_input_at_all_and_of_tiny_and_huge_ones(scale: float) -> None:
    """Where nothing was active any rounding is right, and the nearest is taken; GPTQ itself knows no unit."""
    w, moment = case(4, 12)
    codes, _ = by_gptq(w, moment * scale, Grid(4, -1, False))
    expected, _ = by_gptq(w, moment if scale else np.eye(12), Grid(4, -1, False))
    assert torch.equal(codes, expected)


@pytest.mark.parametrize("bad", [float("nan"), -5.0])
def test_impossible_moments_are_refused(bad: float) -> None:
    w, moment = case(4, 12)
    moment[3, 3] = bad * moment.diagonal().mean()
    with pytest.raises(InputError, match="not positive definite") as caught:
        by_gptq(w, moment, Grid(4, -1, False))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("outlier_percent", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("n_in", "group_size", "bits"), [(6, -1, 2), (24, 7, 3), (24, 8, 4), (60, -1, 4), (50, 16, 8)])
def test_flips_equal_brute_force(
    n_in: int, group_size: int, bits: int, symmetric: bool, outlier_percent: float
) -> None:
    rng = np.random.default_rng(n_in + bits)
    w, mean, grid = rng.normal(size=(12, n_in)), rng.normal(size=n_in) + 0.3, Grid(bits, group_size, symmetric)
    expected, orders, counts = reference.greedy_flip(w, mean, bits, group_size, symmetric, outlier_percent)
    codes, dequantized = by_flips(w, mean, grid, outlier_percent)
    assert np.array_equal(codes.numpy(), expected)
    plain, steps, zeros = reference.by_column(w, bits, group_size, symmetric)
    assert sum(counts) > 0, "the case must be one with flips"
    # what the rule promises, without the reference's own choice
    before, after = ((mean * (w - (c - zeros) * steps)).sum(1) for c in (plain, codes.numpy()))
    assert (np.abs(after) <= np.abs(before) + 1e-12).all() and (np.abs(after) < np.abs(before)).any()
    np.testing.assert_allclose((mean * (w - dequantized.numpy())).sum(1), after, atol=1e-12)
    assert codes.min() >= grid.lowest and codes.max() <= grid.highest
    distance = np.abs(w / steps - (plain - zeros))
    for k, order in enumerate(orders):
        flipped = set(np.flatnonzero(codes.numpy()[k] != plain[k]))
        assert flipped == set(order[: counts[k]])
        kept = [distance[k, j] for j in order if j not in flipped]
        assert min((distance[k, j] for j in flipped), default=1) >= max(kept, default=0)
    assert np.abs(codes.numpy() - plain).max() == 1


def test_outliers_never_flip() -> None:
    rng = np.random.default_rng(0)
    w, mean, grid = rng.normal(size=(200, 40)), rng.normal(size=40), Grid(3, 8, False)
    loudest = np.argsort(-np.abs(mean))
    plain = reference.by_column(w, 3, 8, False)[0]
    free, held = (by_flips(w, mean, grid, share)[0].numpy() != plain for share in (0.0, 0.1))
    assert free[:, loudest[:4]].any() and not held[:, loudest[:4]].any()
    assert held[:, loudest[4]].any(), "no more than that share is left out"


def test_no_flip_where_there_is_no_error_or_no_mean() -> None:
    grid = Grid(4, -1, True)
    on_grid = np.array([[7.0, -3.0, 2.0, 0.0]])
    assert by_flips(on_grid, np.ones(4), grid, 0.0)[0].tolist() == on_grid.tolist()
    w = case(3, 8)[0]
    assert np.array_equal(by_flips(w, np.zeros(8), grid, 0.0)[0].numpy(), reference.by_column(w, 4, -1, True)[0])


def test_flips_stay_in_range_on_a_clipped_grid() -> None:
    """Weights beyond a shrunk range have their second-nearest point outside it."""
    rng = np.random.default_rng(2)
    groups, grid = torch.from_numpy(rng.normal(size=(50, 1, 16))), Grid(2, -1, False)
    step, zero = grids.fit(groups * 0.4, grid)
    context = Context(x_mean=torch.from_numpy(rng.normal(size=16)))
    codes = greedy_flip(groups, step, zero, grid, context, outlier_percent=0.0).codes
    assert codes.min() >= 0 and codes.max() <= 3
    assert not torch.equal(codes, grids.encode(groups, step, zero, grid))


def test_table_names_every_rounding() -> None:
    assert set(ROUNDINGS) == {"nearest", "greedy_flip", "gptq"}
    w = case(3, 20)[0]
    codes = rounded(w, Grid(3, 8, False), "nearest", Context())[0]
    assert np.array_equal(codes.numpy(), reference.by_column(w, 3, 8, False)[0])


@pytest.mark.parametrize("salience", ["none", "l2"])
@pytest.mark.parametrize("rounding", ["gptq", "greedy_flip"])
def test_a_recipes_rounding_sees_the_scaled_inputs(rounding: str, salience: str) -> None:
    """W·diag(s) acts on x/s, whose second moment is H/ssᵀ and whose mean is E[x]/s."""
    w, x = linear_case()
    found = quantized(w, statistics_of(w, x, True), rounding=rounding, salience=salience, bits=3, group_size=8)
    s = np.ones(24) if found.scale is None else found.scale.numpy()
    assert salience == "none" or s.max() > 2 * s.min()
    if rounding == "gptq":
        codes = reference.gptq(w * s, reference.second_moment(x / s), 3, 8, False, 0.01, True)
    else:
        codes, _, counts = reference.greedy_flip(w * s, (x / s).mean(0), 3, 8, False, 0.05)
        assert sum(counts) > 0
    assert np.array_equal(grids.from_groups(found.codes, 24).numpy(), codes)
    np.testing.assert_allclose(found.dequantize().numpy() * s, codes_to_weights(w * s, codes), rtol=1e-9, atol=1e-12)


def codes_to_weights(w: np.ndarray, codes: np.ndarray) -> np.ndarray:
    _, steps, zeros = reference.by_column(w, 3, 8, False)
    return (codes - zeros) * steps
