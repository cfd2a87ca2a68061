"""What a budget of second moments decides, against every budget there is."""

from typing import Any

import pytest
import torch
from torch import nn

from quant.calibration import expert_moments
from quant.calibration.expert_moments import Keeping
from quant.calibration.moment_sizes import deciding, held, total, triangle_bytes
from quant.calibration.second_moments import to_triangle


def test_a_budget_that_is_enough_is_none() -> None:
    assert all(triangle_bytes(n) == to_triangle(torch.eye(n)).nbytes for n in (1, 4, 5))
    assert expert_moments.rooms([nn.Linear(2, 2)], Keeping(budget_gb=1)) == (float("inf"), "")


# a block of two kinds, and one more of one kind
BLOCKS = [[(40, 8), (144, 8)], [(40, 8), (144, 8)], [(60, 3)]]


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_one_number_stands_for_all_budgets_that_decide_alike(part: float) -> None:
    """Each number of whole bytes a block, and beside it: the same experts have their own, and others another number."""
    kept: dict[float | None, Any] = {}
    for room in range(0, 1600, 3):
        budget = (room + 0.25) * part * len(BLOCKS) / 1e9
        stands, whole = deciding(budget, part, BLOCKS), budget * 1e9 >= part * total(BLOCKS)
        decided = None if whole else [held(block, room) for block in BLOCKS]
        assert whole == (stands is None)
        if stands is not None:
            assert [held(block, stands * 1e9 / part / len(BLOCKS)) for block in BLOCKS] == decided
            assert deciding(stands, part, BLOCKS) == stands
        assert kept.setdefault(stands, decided) == decided
    assert len({repr(each) for each in kept.values()}) == len(kept) > 10
    assert deciding(None, part, BLOCKS) is None and deciding(1e-9, part, []) is None
