"""What the report says of the analyses, and that their figures draw odd data."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from quant.analysis.preactivations import CLASSES, class_words, classify, linear_row, most_critical, most_negative
from quant.report.figures import layer as layer_figures
from quant.report.figures import preactivations as preactivation_figures
from quant.report.figures.style import to_svg
from quant.report.figures.synthetic import synthetic as synthetic_figure
from quant.report.sections.layer import deep_dive
from quant.report.sections.preactivations import preactivation_headline, preactivations
from quant.report.sections.synthetic import synthetic, synthetic_headline

THRESHOLDS = {"dead": -3.0, "sigmas": 3.0, "high_weight": 0.75}
RECORD = {"model": "m", "thresholds": THRESHOLDS, "tokens": 100, "sampled_tokens": 8}
LINEARS = ("model.layers.2.self_attn.q_proj", "model.layers.2.mlp.gate_proj")


def channels(shift: float = 0.0, spread: float = 1.0) -> pd.DataFrame:
    """Two linears of a layer, 40 channels each; the gate's are read by an activation."""
    import torch

    tables = []
    for seed, linear in enumerate(LINEARS):
        generator = torch.Generator().manual_seed(seed)
        mean = spread * torch.randn(40, generator=generator) + shift
        std, weight = spread * torch.rand(40, generator=generator), torch.rand(40, generator=generator)
        columns = {"z_mean": mean, "z_std": std, "z_min": mean - 4 * std, "z_max": mean + 4 * std, "weight_abs": weight}
        columns |= {"upper_bound": mean + 3 * std, "score_awq": mean.abs(), "score_praq": mean.abs() + std}
        columns |= classify(mean, std, weight, THRESHOLDS)
        table = pd.DataFrame({name: value.numpy() for name, value in columns.items()})
        tables.append(table.assign(linear=linear, channel=range(40), activated="gate" in linear))
    return pd.concat(tables, ignore_index=True)


def samples(table: pd.DataFrame) -> list[np.ndarray]:
    return [np.linspace(row.z_min, row.z_max, 8, dtype=np.float32) for row in table.itertuples()]


def table_of(found: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for linear, mine in found.groupby("linear", sort=False):
        sample = np.random.default_rng(0).normal(mine.z_mean, mine.z_std, (8, 40))
        rows.append({"linear": linear, "layer": 2, "kind": "mlp"} | linear_row(mine, sample, 100))
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("shift", "spread"), [(0.0, 1.0), (-4.0, 1.0), (0.0, 0.0), (-5000.0, 900.0)])
def test_figures_draw_living_dead_constant_and_huge_channels(shift: float, spread: float) -> None:
    found = channels(shift, spread)
    shown = most_critical(found[found.critical], 3)
    drawn = preactivation_figures.layer_preactivations(2, found, shown, samples(shown), THRESHOLDS)
    assert len(drawn.axes) == 6
    to_svg(drawn, {})
    chosen = {"most negative": most_negative(found, 4), "nearest to critical": most_critical(found, 4)}
    parts = {name: samples(rows) for name, rows in chosen.items()}
    to_svg(layer_figures.negative_channels(2, chosen, parts, THRESHOLDS), {})
    svg = to_svg(preactivation_figures.classes_by_layer(table_of(found)), {})
    assert svg == to_svg(preactivation_figures.classes_by_layer(table_of(found)), {})


def test_preactivation_section_counts_what_the_activation_reads() -> None:
    found = channels(shift=-3.0)
    section = preactivations("", table_of(found), RECORD, "<svg/>", [(2, b"webp")])
    gate = found[found.activated]
    n, risky, critical = (int(gate[name].sum()) for name in ("dead", "risky", "critical"))
    expected = f"{n} of the 40 channels that the activation reads are dead ({100 * n / 40:.2f} %); {risky} of those are"
    assert section.headline.startswith(expected) and section.headline.endswith(f"{critical} critical")
    assert section.anchor == "preactivations" and len(section.folded[0].pictures) == 1
    assert section.pictures[0].alt and all(picture.alt for picture in section.folded[0].pictures)
    assert "E z < −3" in section.lines[0]
    assert len(section.folded[1].tables[0][1].rows) == 2


def test_preactivation_headline_says_no_and_not_known() -> None:
    none = pd.Series({"activated": 40, **{f"activated_{name}": 0 for name in CLASSES}})
    assert preactivation_headline(none) == "None of the 40 channels that the activation reads is dead"
    assert "is not known" in preactivation_headline(none * 0)


def test_deep_dive_section_leaves_out_what_agrees_by_definition() -> None:
    rows = [
        ("q_proj", "output", 0.9),
        ("q_proj", "input", 1.0),
        ("gate_proj", "output", 0.8),
        ("gate_proj", "input", -0.2),
    ]
    agreement = pd.DataFrame(
        [
            {"linear": f"model.layers.2.x.{name}", "side": side, "channels": 40, "spearman": rho, "low": rho - 0.05,
             "high": min(rho + 0.05, 1), "overlap_0.2": 0.5, "praq_rank_of_first": 40}
            for name, side, rho in rows
        ]
    )  # fmt: skip
    record = RECORD | {"layer": 2, "words": "Layer 2, which lies as deep in this model of 4", "top": [0.2]}
    section = deep_dive("-1", record, agreement, channels(), b"png", b"png")
    assert section.anchor == "layer-2-1" and section.title == "Layer 2 of m"
    assert "output channels much alike (Spearman's ρ 0.80 to 0.90)" in section.headline
    assert "input channels of MLP linears quite differently (Spearman's ρ −0.20 to −0.20)" in section.headline
    assert section.lines[0] == "Layer 2, which lies as deep in this model of 4."
    assert len(section.tables[0][1].rows) == 4
    assert "The input channel that is AWQ's number 1 is by PRAQ number 40 of 40 in gate_proj." in section.lines
    constant = agreement.assign(spearman=math.nan, low=math.nan, high=math.nan)
    assert "No rank correlation is defined" in deep_dive("", record, constant, channels(), b"", b"").headline


def scales(*differences: tuple[float, float]) -> list[dict[str, Any]]:
    method = {"mean": 0.1, "low": 0.09, "high": 0.11, "kept_b": 0.5}
    return [
        {"weight_scale": 2.0 + i, "methods": dict.fromkeys(("awq", "praq", "random", "oracle"), method),
         "praq_minus_awq": {"mean": (low + high) / 2, "low": low, "high": high}}
        for i, (low, high) in enumerate(differences)
    ]  # fmt: skip


def test_synthetic_headline_follows_the_intervals() -> None:
    found = synthetic_headline(scales((-2, -1), (-2, -1), (0, 0), (1, 2), (-1, 1)))
    assert found == (
        "PRAQ's choice errs less than AWQ's with group B's weights × 2, 3; it errs more than AWQ's with × 5; "
        "it is AWQ's own with × 4; it shows no difference from AWQ's with × 6"
    )


def test_synthetic_section_and_figure() -> None:
    options = {"outputs": 64, "inputs": 128, "tokens": 4096, "bias": -15, "keep_ratio": 0.5, "noise": 0.15, "seeds": 9}
    summary = {"options": options, "scales": scales((-2, -1), (0, 0))}
    svg = to_svg(synthetic_figure(summary), {})
    section = synthetic(summary, svg)
    assert "a bias of −15" in section.lines[0] and len(section.tables[0][1].rows) == 8


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((True, True, True, True), "critical"),
        ((True, True, False, False), "risky"),
        ((True, False, True, False), "dead, high weight"),
        ((False, False, True, False), "alive, high weight"),
    ],
)
def test_class_words(row: tuple[bool, ...], expected: str) -> None:
    assert class_words(next(pd.DataFrame([row], columns=list(CLASSES)).itertuples())) == expected
