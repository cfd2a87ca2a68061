"""Saliences against the formulas of docs/methods.md."""

import pytest
import torch
from torch import Tensor

from quant.calibration.channels import Channels
from quant.recipe.choices import SALIENCES
from quant.recipe.functions import function_of
from quant.recipe.saliences.l1 import l1
from quant.recipe.saliences.l2 import l2
from quant.recipe.saliences.praq import praq
from tests.unit.reference import input_statistics, output_statistics, praq_salience


def channels(w: Tensor, x: Tensor, is_mlp: bool) -> Channels:
    """What calibration would know of the linear w (no bias) on inputs x [n, in]."""
    found = input_statistics(x.numpy()) | output_statistics((x @ w.T).numpy())
    return Channels(**{name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}, is_mlp=is_mlp)


@pytest.fixture
def case() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64) * torch.tensor([0.1, 1, 2, 5, 0.5, 1])
    return w, x + 0.3


def test_table_names_every_salience() -> None:
    assert {"none", "l1", "l2", "praq"} <= set(SALIENCES)
    assert function_of("saliences", "none", {}) is None


@pytest.mark.parametrize("is_mlp", [True, False])
def test_l1_and_l2(case: tuple[Tensor, Tensor], is_mlp: bool) -> None:
    w, x = case
    known = channels(w, x, is_mlp)
    torch.testing.assert_close(l1(w, known), x.abs().mean(0))
    torch.testing.assert_close(l2(w, known), x.square().mean(0))


@pytest.mark.parametrize("is_mlp", [True, False])
def test_praq(case: tuple[Tensor, Tensor], is_mlp: bool) -> None:
    w, x = case
    known = channels(w, x, is_mlp)
    expected = praq_salience(w.numpy(), known.act_abs.tolist(), known.x_abs.tolist(), is_mlp)
    found = praq(w, known)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert (found.min().item(), found.max().item()) == (pytest.approx(0.1), pytest.approx(10))


def test_praq_of_attention_and_mlp_differ(case: tuple[Tensor, Tensor]) -> None:
    w, x = case
    mlp, attention = (praq(w, channels(w, x, is_mlp)) for is_mlp in (True, False))
    assert not torch.allclose(mlp, attention, rtol=0.1)


@pytest.mark.parametrize("is_mlp", [True, False])
def test_constant_praq_salience_scales_nothing(is_mlp: bool) -> None:
    w, x = torch.full((3, 4), 0.5, dtype=torch.float64), torch.full((2, 4), -2.0, dtype=torch.float64)
    known = channels(w, x, is_mlp)
    assert torch.equal(praq(w, known), torch.ones(4, dtype=torch.float64))
    one = praq(w[:, :1], channels(w[:, :1], x[:, :1], is_mlp))
    assert one.tolist() == [1]


def test_saliences_leave_their_inputs_alone(case: tuple[Tensor, Tensor]) -> None:
    w, x = case
    known, before = channels(w, x, True), channels(w, x, True)
    kept = w.clone()
    for salience in (l1, l2, praq):
        salience(w, known)
    assert torch.equal(w, kept)
    assert all(torch.equal(a, b) for a, b in zip(known[:-1], before[:-1], strict=True))
