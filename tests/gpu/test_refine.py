"""Refinement on a GPU against the CPU."""

from functools import partial

import pytest
import torch

from quant.calibration.second_moments import layer_error
from quant.recipe import grids
from quant.recipe.context import Context
from quant.recipe.grids import Codes, Grid
from quant.recipe.refine import refine, sweep
from quant.recipe.row_feedback import round_rows
from tests.gpu.cases import GRIDS, case

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("width", [128, 37])
@pytest.mark.parametrize("grid", [Grid(3, -1, False), Grid(4, -1, True, "iq4_nl"), Grid(3, -1, True, "q3_k")])
def test_a_sweep_is_that_of_a_cpu(width: int, grid: Grid) -> None:
    generator = torch.Generator().manual_seed(width)
    w, moment = case(300, width, width)
    steps = (0.02 + 0.05 * torch.rand(300, width, generator=generator)) * 7 / (grid.highest - grid.lowest)
    steps = steps * torch.randn(steps.shape, generator=generator).sign() if grid.signed else steps
    zero = 0 if grid.symmetric else 3
    codes = torch.randint(0, 8, (300, width), generator=generator).float()
    codes = grid.points.nearest_((codes - 3) * grid.points.gap + zero)
    given = ((w - (codes - zero) * steps) @ moment, moment, codes, steps)
    expected = sweep(*given, grid)
    found = [t.cpu() for t in sweep(*(t.cuda() for t in given), grid)]
    rows = (found[0] == expected[0]).all(1)
    assert rows.float().mean() > 0.98  # a tie within a row moves what comes after it
    torch.testing.assert_close(found[1][rows], expected[1][rows], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), GRIDS)
def test_refinement_is_that_of_a_cpu(bits: int, group_size: int, symmetric: bool) -> None:
    w, moment = case(37, 300, bits)
    grid = Grid(bits, group_size, symmetric)
    groups = grids.to_groups(w, group_size)
    step, zero = grids.fit(groups, grid)
    codes = grids.encode(groups, step, zero, grid)
    stored = partial(grids.stored_step, dtype=torch.float16)
    start = layer_error(w - grids.from_groups(grids.decode(codes, step, zero), 300), moment)
    errors, found = {}, {}
    for where in ("cpu", "cuda"):
        held = Codes(*(t.to(where) for t in (codes, step, zero)), grid, 300)
        new = [t.cpu() for t in refine(groups.to(where), held, moment.to(where, copy=True), 3, stored)[:2]]
        found[where] = new
        errors[where] = layer_error(w - grids.from_groups(grids.decode(*new, zero), 300), moment)
    assert errors["cuda"] < 0.9 * start and errors["cuda"] == pytest.approx(errors["cpu"], rel=0.01)
    assert (found["cpu"][0] == found["cuda"][0]).float().mean() > 0.97


def test_twice_the_same() -> None:
    w, moment = (t.cuda() for t in case(600, 1000))
    grid = Grid(4, 64, False)
    groups = grids.to_groups(w, 64)
    step, zero = grids.fit(groups, grid)
    held = Codes(grids.encode(groups, step, zero, grid), step, zero, grid, 1000)
    found = [refine(groups, held, moment.clone(), 3)[:2] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_portions_of_rows_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of all rows as one file gives them, whichever rows are worked on at once."""
    w, moment = (t.cuda() for t in case(200, 300))
    grid, rows = Grid(4, 60, False), torch.rand(200).cuda() + 0.5
    groups = grids.to_groups(w, 60)
    step, zero = grids.fit(groups, grid)
    stored = partial(grids.stored_step, dtype=torch.float16, rows=rows)
    given = groups, Codes(grids.encode(groups, step, zero, grid), step, zero, grid, 300)
    whole = refine(*given, moment.clone(), 2, stored)
    monkeypatch.setattr("quant.recipe.context.AT_ONCE", 4 * 300 * 64)
    parts = refine(*given, moment.clone(), 2, stored)
    assert (whole[0] == parts[0]).float().mean() > 0.999 and torch.equal(parts[1], stored(parts[1]))


def test_rows_rounded_together_cost_what_they_do_on_a_cpu_and_twice_the_same() -> None:
    """Their errors move each other, so that codes differ where one does; not what they cost."""
    w, moment = case(300, 200)
    rows = 0.9 ** (torch.arange(300)[:, None] - torch.arange(300)).abs().float()
    grid = Grid(3, 64, False)
    groups = grids.to_groups(w, 64)
    step, zero = grids.fit(groups, grid)

    def made(where: str) -> list[torch.Tensor]:
        own, steps, zeros, h, r = (t.to(where) for t in (groups, step, zero, moment, rows))
        codes, new, _ = round_rows(own, steps, zeros, grid, Context(h), r, 0.01, 3)
        return [codes.cpu(), new.cpu()]

    def cost(found: list[torch.Tensor]) -> float:
        d = w - grids.from_groups(grids.decode(*found, zero), 200)
        return ((rows @ d) * (d @ moment)).sum().item()

    found = made("cuda")
    assert all(torch.equal(a, b) for a, b in zip(found, made("cuda"), strict=True))
    assert cost(found) == pytest.approx(cost(made("cpu")), rel=0.03)
