"""What roundings need on a GPU: inverses by products, and counts in one reading."""

import pytest
import torch

from quant.recipe import grids, quantized
from quant.recipe.context import Context
from quant.recipe.grids import Grid
from quant.recipe.inverse import inverse_factor
from quant.recipe.kernels import feed_back
from quant.recipe.refine import sweep
from quant.recipe.roundings import greedy_flip
from tests.gpu.cases import GRIDS, case

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), GRIDS)
def test_moves_are_those_of_a_cpu(bits: int, group_size: int, symmetric: bool) -> None:
    w, _ = case(37, 200, bits)
    grid, scale = Grid(bits, group_size, symmetric), torch.rand(200) + 0.5
    for s in (None, scale):
        step, zero = grids.fit(grids.to_groups(0.7 * w, group_size), grid)
        codes = grids.encode(grids.to_groups(0.9 * w if s is None else w * s, group_size), step, zero, grid)
        expected = quantized.moves(w, s, codes, step, zero, grid)
        given = (t.cuda() for t in (codes, step, zero))
        found = quantized.moves(w.cuda(), None if s is None else s.cuda(), *given, grid)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("scale", [100, 900, 5000])
def test_distances_are_counted_as_on_a_cpu(scale: int) -> None:
    """Near ones and far ones."""
    bins = (torch.rand(1000, 77, generator=torch.Generator().manual_seed(scale)) * scale).int()
    counts = torch.tensor([1.0, 2.0**40 + 1, 3.0, 4.0], dtype=torch.float64)
    expected, found = (
        list(quantized.statistics_of([(quantized.Counted.of(bins.to(at), counts.to(at)), lambda: bins)] * 2))
        for at in ("cpu", "cuda")
    )
    assert found == expected


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), GRIDS)
def test_flips_have_the_candidates_of_a_cpu(bits: int, group_size: int, symmetric: bool) -> None:
    w, _ = case(37, 200, bits)
    grid, generator = Grid(bits, group_size, symmetric), torch.Generator().manual_seed(bits)
    step, zero = grids.fit(grids.to_groups(0.8 * w, group_size), grid)
    mean, share = torch.randn(1, 200, generator=generator), torch.rand(1, 200, generator=generator)
    given = [grids.to_groups(t, group_size) for t in (mean, (share > 0.1).float())]
    groups = grids.to_groups(w, group_size)
    expected = greedy_flip.candidates(groups, step, zero, grid, *given)
    found = greedy_flip.candidates(*(t.cuda() for t in (groups, step, zero)), grid, *(t.cuda() for t in given))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found[:4], expected[:4], strict=True))
    torch.testing.assert_close(found.error.cpu(), expected.error, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 96, 97, 576, 2304])
def test_inverse_factor_is_that_of_float64(n: int) -> None:
    _, moment = case(1, n, n, rows=n // 2 + 1)  # half of the directions unseen
    exact, _ = inverse_factor(moment.double(), 0.01)
    found, damp = inverse_factor(moment.cuda(), 0.01)
    assert damp == 0.01 and torch.equal(found.triu(), found)
    plain, _ = inverse_factor(moment.clone(), 0.01)
    slack = 4 * (plain.double() - exact).norm() / exact.norm() + 1e-6  # what a CPU's float32 leaves
    assert (found.cpu().double() - exact).norm() / exact.norm() < slack
    assert torch.equal(found, inverse_factor(moment.cuda(), 0.01)[0])


def test_a_moment_is_put_in_order_as_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever portions, to the same bits."""
    generator = torch.Generator().manual_seed(0)
    h, inverse = torch.rand(300, 300, generator=generator), torch.rand(300, generator=generator)
    order = torch.randperm(300, generator=generator)
    for at_once in (2**27, 2**16):
        monkeypatch.setattr("quant.recipe.context.AT_ONCE", at_once)
        for own in (None, inverse):
            found = Context(h.cuda(), inverse=None if own is None else own.cuda()).copied(order.cuda())
            assert torch.equal(found.cpu(), Context(h, inverse=own).moment[order][:, order])


@pytest.mark.parametrize(("name", "bits"), [("nvfp4", 4), ("fp8", 8), ("nf4", 4)])
def test_listed_values_are_rounded_to_as_on_a_cpu(name: str, bits: int) -> None:
    """By feedback and by a sweep."""
    generator, width = torch.Generator().manual_seed(bits), 100
    w, factor = torch.randn(300, width, generator=generator), torch.randn(width, width, generator=generator).triu_() / 8
    factor.diagonal().uniform_(0.5, 1.5, generator=generator)
    grid = Grid(bits, 16, True, name)
    steps = (0.5 + torch.rand(300, width, generator=generator)) * 2 / grid.highest
    x = torch.randn(200, width, generator=generator)
    found = {}
    for where in ("cpu", "cuda"):
        given = [t.to(where, copy=True) for t in (w, factor, steps, torch.zeros_like(steps))]
        codes, errors = torch.empty(2, 300, width, device=where)
        feed_back(*given, grid, codes, errors)
        moved = sweep(w.to(where, copy=True), (x.T @ x / 200).to(where), codes, given[2], grid)
        found[where] = [t.cpu() for t in (codes, errors, *moved)]
    for a, b in zip(found["cpu"], found["cuda"], strict=True):
        rows = ((a - b).abs() <= 1e-4).all(1)
        assert rows.float().mean() > 0.98
