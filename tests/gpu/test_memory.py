"""What rounding holds on a card beside what it is given, in matrices as large as H: that of 28,672 inputs is 3.3 GB."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from quant.recipe import grids
from quant.recipe.context import AT_ONCE, Context
from quant.recipe.correction import corrected
from quant.recipe.grids import Codes, Grid
from quant.recipe.refine import refine
from quant.recipe.roundings.gptq import gptq
from quant.recipe.search import Target, search_scale

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
N_IN, N_OUT = 8192, 512
GRID = Grid(4, 128, False)


def beside(work: Callable[[], Any]) -> float:
    """The most that is held beside what was there, in matrices [N_IN, N_IN] of float32, once libraries have theirs."""
    for _ in range(2):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
    return (torch.cuda.max_memory_allocated() - before) / (4 * N_IN**2)


@pytest.fixture(scope="module")
def moment() -> Tensor:
    x = torch.randn(4096, N_IN, generator=torch.Generator("cuda").manual_seed(0), device="cuda")
    return x.T @ x / len(x)


def test_roundings_hold_few_matrices_as_large_as_the_moment(moment: Tensor) -> None:
    w = torch.randn(N_OUT, N_IN, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    groups, context = grids.to_groups(w, 128), Context(moment, inverse=torch.full_like(w[0], 0.5))
    step, zero = grids.fit(groups, GRID)
    held = Codes(grids.encode(groups, step, zero, GRID), step, zero, GRID, N_IN)
    rows = 12 * N_OUT / N_IN  # of the weight's own size, and of portions
    portions = 2.5 * AT_ONCE / (4 * N_IN**2)
    # H in its order and its factor; half of one while that is inverted
    assert beside(lambda: gptq(groups, step, zero, GRID, context, damp=0.01)) < 2.1 + rows + portions
    assert beside(lambda: refine(groups, held, context.copied(), 2)) < 1.1 + rows + portions
    assert beside(lambda: corrected([w], moment.clone(), moment, 0.5)) < 3.1 + rows + portions
    assert beside(lambda: search_scale([Target(w, moment)], moment.diagonal(), GRID, 20)) < 0.6 + rows + portions
