"""What a new salience, rounding or score may get wrong: refused by name, in one line, before it is a number."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from quant.errors import InputError
from quant.recipe import grids
from quant.recipe.checks import check_importance, check_rounded
from quant.recipe.context import Rounded
from quant.recipe.functions import function_of
from quant.recipe.grids import Grid

GRID = Grid(4, 4, False, "int")


@pytest.mark.parametrize(
    ("found", "least", "expected"),
    [
        (torch.ones(3), 0, r"salience: mine: gives \[3\] where a number for each channel, \[2\], is due"),
        (torch.ones(2, 1), 0, r"gives \[2, 1\] where"),
        (2.0, 0, "gives float where"),
        (torch.tensor([1.0, torch.nan]), 0, "gives NaN to a channel, where finite numbers from 0 on are due"),
        (torch.tensor([1.0, -2.5]), 0, "gives -2.5 to a channel"),
        (torch.tensor([1.0, torch.inf]), 0, "gives inf to a channel"),
        (torch.tensor([-torch.inf, 0.0]), -torch.inf, "gives -inf to a channel, where finite numbers are due"),
    ],
)
def test_no_importance(found: Any, least: float, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        check_importance(found, 2, "salience: mine", least)
    assert "\n" not in str(caught.value)


def test_importances() -> None:
    assert check_importance(torch.tensor([0.0, 3.0]), 2, "", 0).tolist() == [0, 3]
    assert check_importance(torch.tensor([-1.0, 3.0]), 2, "", -torch.inf).tolist() == [-1, 3]


@pytest.mark.parametrize("format", ["int", "nf4", "nvfp4", "iq4_nl"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_codes_of_every_grid(format: str, symmetric: bool) -> None:
    """The nearest are taken as they are; what lies between two values, beyond the last one, or is no number, is not."""
    grid = Grid(4, 4, symmetric, format)
    if symmetric or format == "int":
        groups = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
        codes = grids.encode(groups, *grids.fit(groups, grid), grid)
        assert check_rounded(Rounded(codes, 0.5), groups.shape, grid, "")[1] == 0.5
        for wrong in (codes.max() + 1e-3, torch.tensor(grid.points.highest + 1), torch.tensor(torch.nan)):
            one = codes.clone()
            one[2, 1, 3] = wrong
            with pytest.raises(InputError, match=f"rounding: mine: gives the code {re.escape(f'{wrong.item():g}')}, "):
                check_rounded(Rounded(one), groups.shape, grid, "rounding: mine")


@pytest.mark.parametrize(
    ("found", "gives"),
    [(torch.zeros(2, 1, 4), "a Tensor"), (None, "a NoneType"), (Rounded(torch.zeros(2, 4)), r"codes \[2, 4\]")],
)
def test_no_codes(found: Any, gives: str) -> None:
    with pytest.raises(InputError, match=rf"gives {gives} where Rounded\(codes\) of \[2, 1, 4\] is due"):
        check_rounded(found, torch.Size([2, 1, 4]), GRID, "rounding: mine")


def test_an_argument_that_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from quant.recipe.saliences import l1

    def mine(w: Any, channels: Any, *, strength: float) -> None: ...

    monkeypatch.setattr(l1, "l1", mine)
    expected = "saliences/l1.py: l1 wants strength, which is no key of a recipe; write it in its entry of"
    with pytest.raises(InputError, match=expected):
        function_of("saliences", "l1", {})
    assert isinstance(function_of("saliences", "l1", {"strength": 1}), Callable)  # type: ignore[arg-type]
