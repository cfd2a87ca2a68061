"""A recorded step does what the step itself does, to the bit."""

import contextlib
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from quant.recipe import grids
from quant.recipe.context import Context
from quant.recipe.grids import Codes, Grid
from quant.recipe.refine import refine
from quant.recipe.row_feedback import mixed, round_rows
from quant.runtime import replay
from quant.runtime.replay import WARM, Replay, recordable, recording, set_rate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trained(records: bool) -> tuple[list[Tensor], bool]:
    """A network's parameters after some steps of Adam, the last batch a shorter one; whether steps were recorded."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 32)).to(device)
    optimizer = torch.optim.Adam(**recordable(device, [list(model.parameters())]), betas=(0.9, 0.95))
    replay = Replay(device)
    replay._records = records

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        (model(x) - y).square().mean().backward()
        optimizer.step()

    for k in range(4 * WARM):
        set_rate(optimizer.param_groups[0], 1e-2 / (1 + k))
        x, y = torch.randn(2, 5 if k == 4 * WARM - 1 else 16, 32, device=device)
        replay(x.shape, step, x, y)
    return [each.detach().cpu() for each in model.parameters()], replay._graph is not None


def test_recorded_steps_are_the_steps() -> None:
    (plain, was_recorded), (recorded, is_recorded) = trained(False), trained(True)
    assert is_recorded and not was_recorded
    assert all(torch.equal(*both) for both in zip(plain, recorded, strict=True))


@pytest.mark.parametrize(("with_rows", "together"), [(False, False), (True, False), (False, True), (True, True)])
def test_recorded_refinement_is_what_it_is(with_rows: bool, together: bool) -> None:
    """Of one linear after another of a shape; together: rows rounded and refined with feedback of each other."""
    generator, grid, found = torch.Generator().manual_seed(0), Grid(4, 64, False), []
    for records in (False, True):
        generator.manual_seed(0)
        with recording() if records else contextlib.nullcontext():
            for _ in range(WARM + 3):
                w, x = torch.randn(96, 320, generator=generator), torch.randn(500, 320, generator=generator)
                rows = torch.rand(96, generator=generator).cuda() + 0.5 if with_rows else None
                groups, moment = grids.to_groups(w.cuda(), 64), (x.T @ x / 500).cuda()
                step, zero = grids.fit(groups, grid)
                codes = grids.encode(groups, step, zero, grid)
                stored = partial(grids.stored_step, dtype=torch.float16, rows=rows, steps=grid.steps, unit=1.0)
                if together:
                    between = mixed(torch.cov(torch.randn(96, 400, generator=generator)).cuda(), 0.7)
                    given = groups, step, zero, grid, Context(moment), between, 0.01, 3, stored
                    found.append(round_rows(*given)[:2])
                else:
                    found.append(refine(groups, Codes(codes, step, zero, grid, 320), moment, 3, stored)[:2])
            assert not records or len(replay._recorders[-1]._known) == 1
    plain, recorded = found[: WARM + 3], found[WARM + 3 :]
    assert all(
        torch.equal(a, b) for one, other in zip(plain, recorded, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert not torch.equal(recorded[-1][0], recorded[-2][0])
