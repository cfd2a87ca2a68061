"""Protection scores against docs/methods.md, blocks of 32 rows, and which rows are kept."""

import pytest
import torch
from torch import Tensor

from quant.calibration.channels import Channels
from quant.recipe.protection import top
from quant.recipe.scores.awq import awq
from quant.recipe.scores.praq import praq_score, sum_blocks
from tests.unit import reference

PARAMETERS = {"beta": 3.0, "tau": -3.0, "noise_factor": 0.2}


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Channels]:
    """w [64, 10], x [50, 10] and what is known of them; biases spread z from dead to alive."""
    generator = torch.Generator().manual_seed(0)
    w = 0.3 * torch.randn(64, 10, generator=generator, dtype=torch.float64)
    x = torch.randn(50, 10, generator=generator, dtype=torch.float64)
    z = x @ w.T + torch.linspace(-12, 3, 64, dtype=torch.float64)
    found = reference.input_statistics(x.numpy()) | reference.output_statistics(z.numpy())
    known = {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}
    return w, x, Channels(**known, is_mlp=True)


def test_awq_score_is_mean_magnitude(case: tuple[Tensor, Tensor, Channels]) -> None:
    w, _, known = case
    assert torch.equal(awq(w, known), known.z_abs)


@pytest.mark.parametrize(("beta", "tau", "noise_factor"), [(3.0, -3.0, 0.2), (1.0, 0.5, 0.0), (0.5, -6.0, 3.0)])
def test_praq_score(case: tuple[Tensor, Tensor, Channels], beta: float, tau: float, noise_factor: float) -> None:
    w, x, known = case
    z = {name: getattr(known, name).tolist() for name in ("z_mean", "z_std", "z_abs")}
    expected = reference.praq_score(w.numpy(), x.numpy(), z, beta, tau, noise_factor)
    found = praq_score(w, known, beta, tau, noise_factor)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    assert found.max() > 5 * found.min(), "the case must hold dead and living channels"


def test_dead_channels_score_less_though_they_are_loud(case: tuple[Tensor, Tensor, Channels]) -> None:
    w, _, known = case
    assert awq(w, known).argmax() == 0  # E z = -12
    assert praq_score(w, known, **PARAMETERS).argmax() != 0


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 64, 96, 100])
def test_sum_blocks(rows: int) -> None:
    score = torch.rand(rows, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)
    expected = torch.tensor(reference.sum_blocks(score.tolist()), dtype=torch.float64)
    torch.testing.assert_close(sum_blocks(score), expected)
    assert torch.equal(sum_blocks(score), score) == bool(rows % 32)


def test_blocks_are_kept_whole() -> None:
    score = torch.arange(128.0).roll(40)
    kept = top(sum_blocks(score), 0.5).view(4, 32)
    assert sorted(kept.sum(1).tolist()) == [0, 0, 32, 32]


def test_top_keeps_the_highest_and_the_first_on_a_tie() -> None:
    score = torch.tensor([1.0, 3.0, 2.0, 3.0, 0.0, 2.0])
    assert top(score, 0.5).tolist() == [False, True, True, True, False, False]
    assert top(torch.ones(200), 0.25).nonzero().flatten().tolist() == list(range(50))
    assert top(score, 0.0).sum() == 0
    assert top(score, 1.0).sum() == 6


@pytest.mark.parametrize("rows", [8, 10, 64, 100])
@pytest.mark.parametrize("keep_ratio", [0.1, 0.25, 0.5])
def test_top_keeps_that_share(rows: int, keep_ratio: float) -> None:
    score = torch.rand(rows, generator=torch.Generator().manual_seed(rows))
    kept = top(score, keep_ratio)
    assert abs(kept.sum().item() - keep_ratio * rows) <= 0.5
    assert score[kept].min() >= score[~kept].max()
