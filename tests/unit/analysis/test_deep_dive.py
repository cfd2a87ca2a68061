"""The deep dive: rank correlation, its interval's coverage, overlaps, and scores that are those of the methods."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from quant.analysis.deep_dive import agreement, dive, overlap, spearman
from quant.analysis.preactivations import opened
from quant.calibration.material import Material
from quant.calibration.statistics import collect
from quant.data.tokens import Tokens, fingerprint
from quant.runtime.compute import Compute
from tests.conftest import Captured
from tests.unit import reference

PATTERNS = {"attention": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": ["mlp"]}
THRESHOLDS = {"dead": -3.0, "sigmas": 3.0, "high_weight": 0.75}
PARAMETERS = {"beta": 3.0, "tau": -3.0, "noise_factor": 0.2}


def slow_ranks(values: list[float]) -> list[float]:
    """Ranks from 1; ties share their mean."""
    return [
        1 + sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]


@pytest.mark.parametrize("n", [4, 5, 31, 100])
def test_spearman_against_loops(n: int) -> None:
    generator = np.random.default_rng(n)
    a = generator.integers(0, 8, n).astype(float)
    b = a + generator.normal(size=n) * 4
    ranks_a, ranks_b = slow_ranks(a.tolist()), slow_ranks(b.tolist())
    mean = (n + 1) / 2
    product = sum((x - mean) * (y - mean) for x, y in zip(ranks_a, ranks_b, strict=True))
    squares = sum((x - mean) ** 2 for x in ranks_a) * sum((y - mean) ** 2 for y in ranks_b)
    rho, low, high = spearman(a, b)
    assert rho == pytest.approx(product / math.sqrt(squares))
    assert -1 <= low <= rho <= high <= 1


def test_spearman_at_the_edges() -> None:
    a = np.arange(10.0)
    assert spearman(a, a**3) == (1, 1, 1)
    assert spearman(a, -a) == (-1, -1, -1)
    assert all(map(math.isnan, spearman(a, np.ones(10))))
    assert spearman(np.array([1.0, 2, 3]), np.array([1.0, 3, 2]))[1:] == (-1, 1)


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_spearmans_interval_covers_95_percent(rho: float) -> None:
    generator = np.random.default_rng(0)
    truth = 6 / math.pi * math.asin(rho / 2)  # of a normal pair with correlation rho
    covered = 0
    for _ in range(1000):
        a = generator.normal(size=200)
        b = rho * a + math.sqrt(1 - rho**2) * generator.normal(size=200)
        _, low, high = spearman(a, b)
        covered += low <= truth <= high
    assert abs(covered / 1000 - 0.95) < 0.025


@pytest.mark.parametrize("n", [3, 10, 57])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_overlap_against_loops(n: int, share: float) -> None:
    generator = np.random.default_rng(n)
    a, b = generator.integers(0, 6, (2, n)).astype(float)
    wanted = max(round(share * n), 1)

    def best(scores: list[float]) -> set[int]:
        return set(sorted(range(n), key=lambda i: (-scores[i], i))[:wanted])

    assert overlap(a, b, share) == len(best(a.tolist()) & best(b.tolist())) / wanted


def test_dive_scores_are_those_of_the_methods(tiny_checkpoint: Path, captured: Captured, tmp_path: Path) -> None:
    channels, moments, kept = (tmp_path / f"{name}.safetensors" for name in ("channels", "moments", "kept"))
    tokens = Tokens(captured.sequences, fingerprint(captured.sequences), {})
    material, compute = Material(tiny_checkpoint, tokens, {"model_fingerprint": "m"}), Compute("cpu", torch.float32, 26)
    collect(material, channels, moments, compute, preactivations_path=kept)
    with opened(tiny_checkpoint, channels, kept) as files:
        outputs, inputs, rows = dive(files, 1, PATTERNS, THRESHOLDS, PARAMETERS, [0.2, 0.5])
        weights = {linear: files.weight(linear).double().numpy() for linear in files.linears(1)}
    for linear, w in weights.items():
        x, z = captured.x[linear], captured.z[linear]
        of_z = reference.output_statistics(z)
        mine = outputs[outputs.linear == linear]
        np.testing.assert_allclose(mine.score_awq, of_z["z_abs"], rtol=1e-4)
        np.testing.assert_allclose(
            mine.score_praq, reference.praq_score(w, x, of_z, **PARAMETERS), rtol=1e-3, atol=1e-6
        )
        into = inputs[inputs.linear == linear]
        of_x = reference.input_statistics(x)
        np.testing.assert_allclose(into.salience_awq, of_x["x_abs"], rtol=1e-4)
        expected = reference.praq_salience(w, of_z["act_abs"], of_x["x_abs"], "mlp" in linear)
        np.testing.assert_allclose(into.salience_praq, expected, rtol=1e-3, atol=1e-3)
    assert len(rows) == 14 and set(rows.side) == {"output", "input"}
    attention = rows[(rows.side == "input") & rows.linear.str.contains("self_attn")]
    assert (attention.spearman == 1).all() and (attention["overlap_0.2"] == 1).all()
    gate = outputs[outputs.linear.str.endswith("gate_proj")]
    expected_row = agreement("g", "output", gate.score_awq.to_numpy(), gate.score_praq.to_numpy(), [0.2])
    found = rows[(rows.side == "output") & rows.linear.str.endswith("gate_proj")].iloc[0]
    assert found.spearman == expected_row["spearman"]
    scores = gate.score_praq.tolist()
    first = scores[gate.score_awq.tolist().index(gate.score_awq.max())]
    assert found.praq_rank_of_first == 1 + sum(score > first for score in scores)
