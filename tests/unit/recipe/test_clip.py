"""Clipped ranges against a loop over the factors, alone and within the scale search."""

import numpy as np
import pytest
import torch
from torch import Tensor

from quant.calibration.reader import LinearStatistics
from quant.recipe import grids
from quant.recipe.grids import CLIP_FACTORS, Grid
from quant.recipe.search import Target, search_scale
from tests.unit import reference
from tests.unit.recipe.cases import case, quantized, statistics_of

GRIDS = [(2, -1, True), (2, 8, False), (3, 7, True), (3, -1, False), (4, 8, False), (4, 5, True), (8, 7, False)]


def drawn(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """w [6, 24] with heavy tails, and importances."""
    rng = np.random.default_rng(seed)
    return rng.standard_t(3, size=(6, 24)), np.exp(2 * rng.normal(size=24))


def errors(w: np.ndarray, found: np.ndarray, importance: np.ndarray) -> np.ndarray:
    return ((w - found) ** 2 * importance).sum(1)


def test_factors_are_those_of_the_reference() -> None:
    assert list(CLIP_FACTORS) == reference.CLIP_FACTORS
    assert CLIP_FACTORS[0] == 1


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), GRIDS)
def test_clipping_equals_the_loop(bits: int, group_size: int, symmetric: bool) -> None:
    w, importance = drawn(bits)
    grid = Grid(bits, group_size, symmetric)
    expected, factors = reference.clipped(w, importance, bits, group_size, symmetric)
    found = grids.nearest(torch.from_numpy(w), grid, torch.from_numpy(importance)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    if bits < 8:
        assert len(set(factors.flatten())) > 2, "the case must be one with several factors"
    plain = reference.rounded(w, bits, group_size, symmetric)
    assert (errors(w, found, importance) <= errors(w, plain, importance)).all()
    even = grids.nearest(torch.from_numpy(w), grid, torch.ones(24, dtype=torch.float64)).numpy()
    assert (errors(w, found, importance) <= errors(w, even, importance)).all()


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), GRIDS)
def test_never_worse_than_the_full_range_by_group(bits: int, group_size: int, symmetric: bool) -> None:
    grid, generator = Grid(bits, group_size, symmetric), torch.Generator().manual_seed(bits)
    w = torch.randn(40, 24, generator=generator)
    importance = grids.to_groups(torch.rand(1, 24, generator=generator) ** 4, group_size)
    groups = grids.to_groups(w, group_size)

    def error(step: Tensor, zero: Tensor) -> Tensor:
        return ((grids.decode(grids.encode(groups, step, zero, grid), step, zero) - groups) ** 2 * importance).sum(-1)

    plain, clipped = error(*grids.fit(groups, grid)), error(*grids.fit_clipped(groups, grid, importance))
    assert (clipped <= plain).all()
    assert bits == 8 or (clipped < plain).any()


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_larger_factor_on_a_tie(symmetric: bool) -> None:
    groups, grid = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0)), Grid(4, 8, symmetric)
    for importance in (torch.zeros(1, 3, 8), torch.full((1, 3, 8), torch.nan)):  # nothing to choose by
        for found, expected in zip(grids.fit_clipped(groups, grid, importance), grids.fit(groups, grid), strict=True):
            assert torch.equal(found, expected)
    zeros = torch.zeros(1, 1, 8)
    assert [t.item() for t in grids.fit_clipped(zeros, grid, torch.ones(1, 1, 8))] == [1, 0]


def test_a_channel_that_counts_alone_decides() -> None:
    """All error on the smallest weight: the range shrinks as far as it helps, whatever the large one loses."""
    groups = torch.tensor([[[8.0, 0.31]]])
    importance, grid = torch.tensor([[[0.0, 1.0]]]), Grid(4, -1, True)
    step, zero = grids.fit_clipped(groups, grid, importance)
    assert grids.decode(grids.encode(groups, step, zero, grid), step, zero)[0, 0, 1] == pytest.approx(0.31, abs=0.2)
    assert step.item() == pytest.approx(8 * 0.4 / 7)


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), [(3, -1, True), (3, 7, False), (4, 8, False)])
@pytest.mark.parametrize("salience", ["l1", "l2"])
def test_search_with_clip_equals_brute_force(salience: str, bits: int, group_size: int, symmetric: bool) -> None:
    w, x = case()
    values = np.array(reference.input_statistics(x)[{"l1": "x_abs", "l2": "x_sq"}[salience]])
    grid = (bits, group_size, symmetric)
    alpha, objective, _ = reference.search(w, x, values, *grid, 10, clip=True)
    assert objective != pytest.approx(reference.search(w, x, values, *grid, 10)[1], rel=0.01)
    target = Target(torch.from_numpy(w), torch.from_numpy(reference.second_moment(x)))
    found = search_scale([target], torch.from_numpy(values), Grid(*grid), 10, clip=True)
    assert (found.alpha, found.objective) == (alpha, pytest.approx(objective, rel=1e-6))
    whole = quantized(
        w,
        statistics_of(w, x, True),
        salience=salience,
        clip=True,
        n_grid=10,
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
    )
    square = np.array(reference.input_statistics(x)["x_sq"])
    expected = reference.scaled_rounded(w, values, alpha, *grid, square)
    np.testing.assert_allclose(whole.dequantize().numpy(), expected, rtol=1e-9, atol=1e-12)
    error = reference.row_errors(w - whole.dequantize().numpy(), x).sum() / 6
    assert whole.objective == pytest.approx(error, rel=1e-6), "what is found is what is written"


@pytest.mark.parametrize("with_moment", [True, False])
def test_clip_without_a_search(with_moment: bool) -> None:
    """By H's diagonal, or by E[x²], which is the same, where no moment was asked for."""
    w, x = case()
    known = statistics_of(w, x, True)
    known = known if with_moment else LinearStatistics(known.channels)
    expected, _ = reference.clipped(w, (x**2).mean(0), 3, 8, False)
    found = quantized(w, known, clip=True, bits=3, group_size=8)
    np.testing.assert_allclose(found.dequantize().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_clip_and_gptq_share_the_range() -> None:
    w, x = case()
    plain, both = (
        quantized(w, statistics_of(w, x, True), clip=True, bits=3, group_size=8, rounding=rounding)
        for rounding in ("nearest", "gptq")
    )
    assert torch.equal(plain.step, both.step) and torch.equal(plain.zero, both.zero)
    assert not torch.equal(plain.codes, both.codes)
