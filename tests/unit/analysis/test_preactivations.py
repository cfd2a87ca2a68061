"""The pre-activation analysis: the sample, ranges, classes and percentiles against slow references."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from quant.analysis.preactivations import (
    Files,
    activated_rows,
    analyse,
    classify,
    most_critical,
    most_negative,
    opened,
    percentiles,
    samples_of,
)
from quant.calibration.material import Material
from quant.calibration.preactivation_sums import Preactivations, TokenSample
from quant.calibration.statistics import collect
from quant.data.tokens import Tokens, batches, fingerprint
from quant.errors import InputError
from quant.files import tensorfile
from quant.models.structure.names import layer_of, name_in_block
from quant.runtime.compute import Compute
from tests.conftest import Captured
from tests.unit.recipe.cases import recast

THRESHOLDS = {"dead": -3.0, "sigmas": 3.0, "high_weight": 0.75}
PATTERNS = {"attention": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": ["mlp"]}


# --- the sample


@pytest.mark.parametrize("n_tokens", [1, 7, 40, 500])
@pytest.mark.parametrize("batch_tokens", [1, 13, 10_000])
def test_sample_takes_each_drawn_token_once(n_tokens: int, batch_tokens: int) -> None:
    """z of a token is its number among all real tokens: padding, were it counted, would shift them."""
    lengths = [9, 5, 12, 12, 1, 12, 3]
    sequences = [torch.arange(length) + sum(lengths[:i]) for i, length in enumerate(lengths)]
    sample = TokenSample(lengths, n_tokens)
    kept = Preactivations()
    for batch in batches(sequences, batch_tokens):
        real = batch.ids.flatten() if batch.mask is None else batch.ids[batch.mask]
        kept.add(torch.stack([real.float(), -real.float()], dim=1), sample.rows(batch))
    found = kept.results()
    assert found["sample"][:, 0].tolist() == sample.positions.tolist()
    assert len(set(sample.positions.tolist())) == min(n_tokens, 54)
    assert found["z_min"].tolist() == [0, -53] and found["z_max"].tolist() == [53, 0]


def test_sample_is_the_same_every_time_and_spread_over_windows() -> None:
    first, second = TokenSample([512] * 64), TokenSample([512] * 64)
    assert torch.equal(first.positions, second.positions) and len(first.positions) == 256
    assert (first.positions // 512).bincount(minlength=64).max() < 16
    assert 200 < (first.positions % 512).double().mean() < 312


def test_sample_is_within_its_stated_error() -> None:
    z = 100 * torch.randn(256, 300, generator=torch.Generator().manual_seed(0))
    kept = Preactivations()
    kept.add(z, torch.arange(256))
    error = (kept.results()["sample"].double() - z.double()).abs() / z.double().abs()
    assert 0 < error.max() <= 2**-8
    narrow, wide = Preactivations(), Preactivations()
    narrow.add(z.bfloat16(), torch.arange(9))
    wide.add(z.bfloat16().float(), torch.arange(9))
    found = narrow.results()
    assert found["z_min"].dtype == torch.float32
    assert all(torch.equal(found[name], value) for name, value in wide.results().items())


# --- percentiles


@pytest.mark.parametrize("shape", [(2, 1), (9, 5), (54, 16)])
def test_percentile_is_the_nearest_rank(shape: tuple[int, int]) -> None:
    sample = np.random.default_rng(0).normal(size=shape)
    ordered = sorted(sample.ravel().tolist())
    for level, found in zip((0.05, 0.5, 0.95), percentiles(sample, (0.05, 0.5, 0.95), 10_000), strict=True):
        assert found.value == ordered[round(level * (len(ordered) - 1))]
        assert found.low <= found.value <= found.high


def test_all_tokens_leave_no_doubt_and_one_token_none_but_doubt() -> None:
    sample = np.random.default_rng(0).normal(size=(50, 200))
    (whole,) = percentiles(sample, (0.05,), 50)
    assert whole.high - whole.low < 0.01
    (alone,) = percentiles(sample[:1], (0.05,), 50)
    assert (alone.low, alone.high) == (-math.inf, math.inf)


def test_percentile_intervals_cover_95_percent() -> None:
    """Tokens share a shift, so that values of one token are no independent draws: taking them for such would cover
    about half."""
    generator = np.random.default_rng(1)
    z = generator.normal(size=(20_000, 30)) + generator.normal(size=(20_000, 1))
    truth = np.quantile(z, 0.05), np.quantile(z, 0.95)
    covered = np.zeros(2)
    trials = 600
    for _ in range(trials):
        sample = z[generator.choice(len(z), 256, replace=False)]
        found = percentiles(sample, (0.05, 0.95), len(z))
        covered += [a.low <= t <= a.high for a, t in zip(found, truth, strict=True)]
    assert (np.abs(covered / trials - 0.95) < 0.03).all(), covered / trials


# --- classes


def slow_classes(
    mean: list[float], std: list[float], rows: list[list[float]], thresholds: dict[str, float]
) -> list[set]:
    """docs/methods.md, Analyses, one channel at a time."""
    magnitude = [sum(abs(w) for w in row) / len(row) for row in rows]
    ordered, place = sorted(magnitude), thresholds["high_weight"] * (len(rows) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    limit = below + (above - below) * (place - math.floor(place))
    classes = []
    for m, s, w in zip(mean, std, magnitude, strict=True):
        found = {"high_weight"} if w > limit else set()
        if m < thresholds["dead"]:
            found.add("dead")
            if m + thresholds["sigmas"] * s > thresholds["dead"]:
                found |= {"risky", "critical"} if w > limit else {"risky"}
        classes.append(found)
    return classes


@pytest.mark.parametrize("rows", [1, 4, 33, 200])
@pytest.mark.parametrize("thresholds", [THRESHOLDS, {"dead": -1.0, "sigmas": 1.0, "high_weight": 0.3}])
def test_classes_against_loops(rows: int, thresholds: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(rows)
    mean = 4 * torch.randn(rows, generator=generator, dtype=torch.float64)
    std = torch.rand(rows, generator=generator, dtype=torch.float64)
    w = torch.randn(rows, 7, generator=generator, dtype=torch.float64)
    found = classify(mean, std, w.abs().mean(1), thresholds)
    expected = slow_classes(mean.tolist(), std.tolist(), w.tolist(), thresholds)
    assert [{name for name in found if found[name][row]} for row in range(rows)] == expected


def test_a_mean_on_the_threshold_is_alive() -> None:
    found = classify(torch.tensor([-3.0, -3.1, -9.0]), torch.tensor([1.0, 1.0, 1.0]), torch.ones(3), THRESHOLDS)
    assert found["dead"].tolist() == [False, True, True]
    assert found["risky"].tolist() == [False, True, False]
    assert not found["high_weight"].any() and not found["critical"].any()


# --- a whole model


@pytest.fixture(scope="module")
def collected(tiny_checkpoint: Path, captured: Captured, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("preactivations")
    paths = [folder / f"{name}.safetensors" for name in ("channels", "moments", "preactivations")]
    tokens = Tokens(captured.sequences, fingerprint(captured.sequences), {})
    material, compute = Material(tiny_checkpoint, tokens, {"model_fingerprint": "m"}), Compute("cpu", torch.float32, 26)
    collect(material, paths[0], paths[1], compute, preactivations_path=paths[2])
    return tiny_checkpoint, paths[0], paths[2]


def test_rows_are_those_of_whole_tensors(collected: tuple[Path, ...], captured: Captured) -> None:
    """All 54 tokens are in the sample, so the percentiles are of all of them, but for bfloat16."""
    with opened(*collected) as files:
        rows = {row["linear"]: row for row in analyse(files, PATTERNS, THRESHOLDS)}
    assert list(rows) == list(captured.z)
    for name, z in captured.z.items():
        row = rows[name]
        for key, value in (("mean", z.mean()), ("std", z.std()), ("min", z.min()), ("max", z.max())):
            assert row[key] == pytest.approx(value, rel=1e-4, abs=1e-4), f"{name} {key}"
        for key, level in (("p5", 0.05), ("p95", 0.95)):
            assert row[key] == pytest.approx(np.quantile(z, level), rel=2**-7, abs=0.02), f"{name} {key}"
            assert row[f"{key}_low"] <= row[key] <= row[f"{key}_high"]
        assert row["dead"] == pytest.approx((z.mean(0) < -3).mean())
        assert row["activated"] == (z.shape[1] if "gate" in name else 0)


def test_samples_of_are_the_pre_activations_themselves(collected: tuple[Path, ...], captured: Captured) -> None:
    rows = pd.DataFrame({"linear": ["model.layers.1.mlp.gate_proj"] * 2, "channel": [3, 70]})
    with tensorfile.opened(collected[2]) as file:
        found = samples_of(file, rows)
    for channel, sample in zip(rows.channel, found, strict=True):
        np.testing.assert_allclose(
            sample, captured.z["model.layers.1.mlp.gate_proj"][:, channel], rtol=2**-7, atol=1e-4
        )


def test_a_layer_that_is_not_there_is_refused_in_one_line(collected: tuple[Path, ...]) -> None:
    with opened(*collected) as files:
        assert len(files.linears(1)) == 7
        with pytest.raises(InputError, match=r"deep_dive\.layers: layer 28: the model has layers 0 to 1"):
            files.linears(28)


def test_weights_that_blocks_share_are_looked_at_once(collected: tuple[Path, ...], tmp_path: Path) -> None:
    """As in Zamba, whose file has them by their first name alone."""
    shared = "model.layers.1.mlp.up_proj"
    source = recast(collected[0], tmp_path / "shared", lambda tensors: tensors.pop(f"{shared}.weight"))
    with opened(source, *collected[1:]) as files, opened(*collected) as before:
        assert [*files.linears(), shared] == sorted(before.linears(), key=shared.__eq__)
        assert len(files.linears(1)) == 6 and len(analyse(files, PATTERNS, THRESHOLDS)) == len(files.linears())
        with pytest.raises(InputError, match="has layers 0 to 1"):
            files.linears(2)


@pytest.mark.parametrize(
    ("model_type", "linear", "expected"),
    [
        ("llama", "model.layers.3.mlp.gate_proj", range(10)),
        ("llama", "model.layers.3.mlp.up_proj", range(0)),
        ("phi3", "model.layers.3.mlp.gate_up_proj", range(5)),
        ("opt", "model.decoder.layers.3.fc1", range(10)),
        ("gpt_neox", "gpt_neox.layers.3.mlp.dense_h_to_4h", range(10)),
        ("unheard_of", "model.layers.3.mlp.gate_proj", range(0)),
    ],
)
def test_rows_that_the_activation_reads(model_type: str, linear: str, expected: range) -> None:
    assert activated_rows({"model_type": model_type}, linear, 10) == expected
    assert layer_of(linear) == 3 and not name_in_block(linear).startswith(("model", "3"))


def test_which_channels_are_shown() -> None:
    """One critical, one risky, two dead and three alive channels; linears that nothing activates stay out."""
    table = pd.DataFrame(
        {
            "z_mean": [-9.0, -4.0, -3.5, -20.0, -2.0, 1.0, 0.0, -50.0],
            "upper_bound": [-6.0, 1.0, 2.0, -5.0, 0.0, 2.0, 1.0, 60.0],
            "dead": [True] * 4 + [False] * 3 + [True],
            "risky": [False, True, True, False, False, False, False, True],
            "critical": [False, True, False, False, False, False, False, True],
            "activated": [True] * 7 + [False],
        }
    )
    assert most_critical(table, 6).index.tolist() == [1, 2, 3, 0, 4, 6]
    assert most_negative(table, 3).index.tolist() == [3, 0, 1]
    assert most_negative(table.assign(activated=False), 1).index.tolist() == [7]


def test_files_is_what_scripts_open(collected: tuple[Path, ...]) -> None:
    with opened(*collected) as files:
        assert isinstance(files, Files)
        assert files.weight("model.layers.0.mlp.gate_proj").shape == (80, 48)
        assert files.sample("model.layers.0.mlp.gate_proj").shape == (54, 80)
