"""The loud silence benchmark: its data, its errors against loops, and that the oracle cannot be beaten."""

import itertools
import math

import pandas as pd
import pytest
import torch

from quant.analysis.synthetic import METHODS, Draw, benchmark, summarise, trial
from tests.unit import reference

OPTIONS = {
    **{"tokens": 40, "inputs": 12, "outputs": 6, "keep_ratio": 0.5, "noise": 0.15, "bias": -15.0},
    **{"weight_scales": [3.0, 6.0], "seeds": 5, "seed": 7},
}
PARAMETERS = {"beta": 3.0, "tau": -3.0, "noise_factor": 0.2}


def test_data_is_what_the_docstring_says() -> None:
    draw = Draw(OPTIONS | {"tokens": 2000, "inputs": 128, "outputs": 64}, 0)
    w, z, noise = draw.scaled(3.0)
    torch.testing.assert_close(z, draw.x @ w.T + draw.bias, rtol=1e-4, atol=1e-4)
    assert draw.in_b.sum() == 32 and draw.bias[draw.in_b].unique().tolist() == [-15]
    assert z[:, ~draw.in_b].mean() == pytest.approx(1, abs=0.05) and z[:, draw.in_b].mean() == pytest.approx(
        -15, abs=0.2
    )
    assert z[:, ~draw.in_b].std() == pytest.approx(1, abs=0.05)
    assert w[draw.in_b].std() * 128**0.5 == pytest.approx(3, rel=0.05)
    relative = noise.std(0) / (w.square().mean(1).sqrt() * 128**0.5)
    assert relative.mean().item() == pytest.approx(0.15, rel=0.05)


@pytest.mark.parametrize("weight_scale", [1.0, 3.0, 6.0])
def test_errors_against_loops_and_every_choice(weight_scale: float) -> None:
    draw = Draw(OPTIONS, 3)
    w, z, noise = (t.double() for t in draw.scaled(weight_scale))
    by_row = [
        sum(
            (reference.silu(a + b) - reference.silu(a)) ** 2
            for a, b in zip(z[:, k].tolist(), noise[:, k].tolist(), strict=True)
        )
        / len(z)
        for k in range(6)
    ]
    found = trial(draw, weight_scale, 0.5, PARAMETERS)
    every = [sum(by_row[k] for k in range(6) if k not in kept) / 6 for kept in itertools.combinations(range(6), 3)]
    assert found["oracle"][0] == pytest.approx(min(every), rel=1e-3)
    loudest = sorted(range(6), key=lambda k: -z[:, k].abs().mean())[:3]
    assert found["awq"][0] == pytest.approx(sum(by_row[k] for k in range(6) if k not in loudest) / 6, rel=1e-3)
    statistics = reference.output_statistics(z.numpy())
    scores = reference.praq_score(w.numpy(), draw.x.double().numpy(), statistics, **PARAMETERS)
    best = sorted(range(6), key=lambda k: -scores[k])[:3]
    assert found["praq"][0] == pytest.approx(sum(by_row[k] for k in range(6) if k not in best) / 6, rel=1e-3)
    assert found["praq"][1] == pytest.approx(sum(k >= 3 for k in best) / 3)


def test_awq_is_misled_and_praq_is_not_until_b_breaks_through() -> None:
    options = OPTIONS | {"tokens": 512, "inputs": 64, "outputs": 32, "weight_scales": [2.0, 6.0]}
    rows = {row["weight_scale"]: row for row in summarise(benchmark(options, PARAMETERS), 999, 0)}
    silent = rows[2.0]["methods"]
    assert silent["awq"]["kept_b"] == 1 and silent["praq"]["kept_b"] == 0
    assert silent["praq"]["mean"] == silent["oracle"]["mean"] < silent["random"]["mean"] < silent["awq"]["mean"]
    assert rows[2.0]["praq_minus_awq"]["high"] < 0
    assert rows[6.0]["methods"]["praq"]["kept_b"] == 1 and rows[6.0]["praq_minus_awq"]["mean"] == 0


def test_summary_is_over_seeds_and_the_same_every_time() -> None:
    trials = benchmark(OPTIONS, PARAMETERS)
    assert len(trials) == 2 * 5 * len(METHODS) and trials.seed.unique().tolist() == [7, 8, 9, 10, 11]
    pd.testing.assert_frame_equal(trials, benchmark(OPTIONS, PARAMETERS))
    row = summarise(trials, 999, 0)[0]
    mine = trials[(trials.weight_scale == 3) & (trials.method == "random")].mse
    assert row["methods"]["random"]["mean"] == pytest.approx(mine.mean())
    assert row["methods"]["random"]["low"] <= mine.mean() <= row["methods"]["random"]["high"]
    assert all(math.isfinite(row[key]["low"]) for key in ("praq_minus_awq", "praq_minus_oracle"))
