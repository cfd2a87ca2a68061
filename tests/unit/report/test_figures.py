"""Figures: what they compute, that odd data draws, and that the same data gives the same bytes."""

import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from quant.comparison.measures import PREDICTED
from quant.comparison.numbers import signed
from quant.report.figures import linears, study, style
from quant.report.figures.axes import log_ticks
from quant.report.figures.draw import draw
from quant.report.figures.pairs import pair_tables, pairs
from quant.report.figures.questions import ENDS, OWN, damage, error_against_nll, forest
from tests.unit.report.pages import profiles

METHODS = ["rtn", "gw_awq", "gw_praq"]
COLOURS = style.method_colours(METHODS)


def summary(deltas: dict[str, float], base: float = 3.0) -> pd.DataFrame:
    """One model on one data set; deltas in nats by method."""
    deltas = {"original": 0.0, **deltas}
    return pd.DataFrame(
        {
            "model": "m",
            "dataset": "d",
            "method": list(deltas),
            "bits_per_weight": [16.0, 4.0, 4.25, 4.25][: len(deltas)],
            "size_mb": [270.0, 110.0, 270.0, 114.0][: len(deltas)],
            "storage": ["original", "packed", "simulated", "packed"][: len(deltas)],
            "nll": [base + x for x in deltas.values()],
            "ppl": [math.exp(base + x) for x in deltas.values()],
            "delta_nll": list(deltas.values()),
            "delta_nll_low": [x - 0.01 for x in deltas.values()],
            "delta_nll_high": [x + 0.01 for x in deltas.values()],
        }
    )


def layers(alpha: float = 0.5) -> pd.DataFrame:
    """Two layers of two linears by two methods."""
    rows = [
        {"model": "m", "method": method, "linear": f"model.layers.{layer}.mlp.{kind}", "layer": layer,
         "alpha": alpha, "relative_error": 0.01 * (layer + 1)}
        for method in METHODS[:2] for layer in (0, 1) for kind in ("up_proj", "down_proj")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def comparisons() -> pd.DataFrame:
    return pd.DataFrame(
        [
            ("m", "d", "rtn", "gw_awq", 0.2, 0.1, 0.3, 9, 0.01),
            ("m", "d", "gw_praq", "gw_awq", 0.01, -0.01, 0.03, 9, 0.4),
        ],
        columns=[
            "model",
            "dataset",
            "method_a",
            "method_b",
            "delta_nll",
            "delta_nll_low",
            "delta_nll_high",
            "sequences",
            "p_holm",
        ],
    )


def check() -> dict:
    linear = {"linear": "model.layers.28.mlp.up_proj", "mse_awq": 2.0, "mse_praq": 2.5, "difference": 0.5}
    return {"layer": 28, "keep_ratio": 0.5, "linears": [{**linear, "low": 0.4, "high": 0.6, "p_holm": 0.01}]}


def texts(fig: Figure) -> list[str]:
    axes = fig.axes[0]
    return [text.get_text() for text in [*axes.texts, *axes.get_yticklabels(), *axes.get_xticklabels()]]


def test_spread_keeps_the_order_the_gap_and_the_bounds():
    wanted = np.array([0.5, 0.51, 0.1, 0.52, 0.99])
    placed = style.spread(wanted, gap=0.1)
    assert (np.argsort(placed) == np.argsort(wanted)).all()
    assert np.diff(np.sort(placed)).min() >= 0.1 - 1e-12
    assert placed.min() >= 0 and placed.max() <= 1
    assert placed[2] == pytest.approx(0.1)


def test_spread_leaves_distant_labels_alone():
    assert style.spread([0.9, 0.1, 0.5], gap=0.2) == pytest.approx([0.9, 0.1, 0.5])


def test_pareto_front_is_what_no_other_point_beats():
    bits, ppl = [4, 4, 3, 8, 5], [30, 25, 40, 22, 26]
    beaten = {
        i for i in range(5) for j in range(5)
        if bits[j] <= bits[i] and ppl[j] <= ppl[i] and (bits[j], ppl[j]) != (bits[i], ppl[i])
    }  # fmt: skip
    assert sorted(study.pareto_front(bits, ppl)) == sorted(set(range(5)) - beaten)


def test_no_two_methods_share_colour_and_marker():
    colours = style.method_colours(f"method_{i}" for i in range(40))
    markers = style.method_markers(colours)
    assert len({(colours[name], markers[name]) for name in colours}) == 40


def test_pair_tables_are_antisymmetric_and_mark_what_is_shown():
    value, shown = pair_tables(comparisons(), METHODS)
    assert value[0, 1] == 0.2 and value[1, 0] == -0.2 and value[2, 1] == 0.01
    assert shown[0, 1] and shown[1, 0] and not shown[2, 1]
    assert np.isnan(value[0, 2])
    by_kl = comparisons().assign(delta_kl=[-0.3, 0.02], p_holm_kl=[0.6, 0.01])
    value, shown = pair_tables(by_kl, METHODS, "kl")
    assert value[0, 1] == -0.3 and not shown[0, 1] and shown[2, 1]
    style.to_svg(pairs(by_kl, METHODS, "kl"), {})


@pytest.mark.parametrize(("value", "text"), [(-0.0004, "0.000"), (0.25, "+0.250"), (-1, "−1.000"), (math.nan, "–")])
def test_signed(value: float, text: str):
    assert signed(value) == text


def test_draw_makes_every_figure_of_a_model():
    frame = summary({"rtn": 0.3, "gw_awq": 0.1, "gw_praq": 0.11})
    drawn = draw(frame, comparisons(), layers(), {"m": check()}, COLOURS)
    per_dataset = {f"m/d/{name}" for name in ("perplexity_bits", "size_delta_nll", "delta_nll", "pairs")}
    per_model = {f"m/{name}" for name in ("error_by_layer", "error_by_kind", "alpha_by_layer", "check_mse")}
    assert drawn.keys() == per_dataset | per_model


def test_where_damage_sits_is_drawn_by_octave_with_its_intervals() -> None:
    frame = summary({"rtn": 0.3, "gw_awq": 0.1, "gw_praq": math.inf})
    table = profiles(frame)
    drawn = draw(frame, comparisons(), layers(), {}, COLOURS, profiles=table)
    for by in ("frequency", "position"):
        ax = drawn[f"m/d/by_{by}"].axes[0]
        assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2", "4"]
        assert sum(len(bars.get_paths()) for bars in ax.collections) == 2 * 3, "gw_praq has no finite one"
        curves = {to_hex(line.get_color()): line for line in ax.lines if len(line.get_xdata()) == 3}
        assert curves.keys() == {to_hex(COLOURS[name]) for name in ("rtn", "gw_awq")}
        assert curves[to_hex(COLOURS["rtn"])].get_ydata() == pytest.approx([0.6, 0.45, 0.3])
    assert draw(frame, comparisons(), layers(), {}, COLOURS, profiles=table.iloc[:0])["m/d/by_position"].axes[0].texts


def test_what_to_take_is_ringed_and_every_interval_drawn():
    frame = summary({"rtn": 0.3, "gw_awq": 0.1, "gw_praq": 0.11})
    for chosen, rings in (("gw_praq", 2), (None, 0), ("elsewhere", 0)):
        ax = study.size_delta_nll(frame, COLOURS, chosen).axes[0]
        found = [line for line in ax.lines if line.get_markerfacecolor() == "none" and line.get_markersize() > 10]
        assert len(found) == rings, "at its point and at its name"
        (bars,) = ax.collections
        assert [path.vertices[:, 1].tolist() for path in bars.get_paths()] == [
            pytest.approx([row.delta_nll_low, row.delta_nll_high]) for row in frame.iloc[1:].itertuples()
        ]


def test_the_originals_own_interval_stands_beside_the_bands():
    frame = summary({"rtn": 0.3, "gw_awq": 0.1}).assign(nll_low=2.9, nll_high=3.14)
    assert "±0.120  the original's own" in texts(study.delta_nll(frame, COLOURS))


def test_a_sweeps_points_have_their_methods_colours():
    frame = summary({"rtn": 0.3, "gw_awq": 0.1})
    rows = frame.iloc[1:].assign(recipe=['{"bits": 4}', '{"bits": 3}'])
    ax = study.sweep(rows, ["rtn", "gw_awq"], COLOURS).axes[0]
    faces = [to_hex(colour).upper() for points in ax.collections for colour in points.get_facecolor()]
    assert {COLOURS["rtn"], COLOURS["gw_awq"]} <= set(faces)


def test_budgets_stand_beside_single_widths():
    frame = summary({"rtn": 0.3, "gw_awq": 0.1})
    rows = frame.iloc[1:].assign(recipe=['{"bits": 4, "budget": null}', '{"bits": 4, "budget": {"size_mb": 9}}'])
    key, table = study.sweep_table(rows, ["rtn", "gw_awq"])
    assert key == "bits per weight" and table.line.tolist() == ["one width", "mixed"]
    assert table.x.tolist() == rows.bits_per_weight.round(2).tolist()
    legend = study.sweep(rows, ["rtn", "gw_awq"], COLOURS).axes[0].get_legend()
    assert {"mixed", "one width"} == {text.get_text() for text in legend.get_texts()}


def test_a_matrix_says_what_was_not_measured():
    table = layers().assign(relative_error=[math.nan, 0.0, *[0.02] * 6])
    drawn = texts(linears.error_by_kind(table))
    assert "2.00" in drawn and "0.00" not in drawn


def test_an_infinite_perplexity_is_left_out_and_the_rest_drawn():
    frame = summary({"rtn": 0.3, "gw_awq": 0.1})
    frame.loc[1, ["ppl", "nll", "delta_nll", "delta_nll_low", "delta_nll_high"]] = math.inf
    for drawing in (study.perplexity_bits, study.delta_nll, study.size_delta_nll):
        fig = drawing(frame, COLOURS)
        shown = " ".join(texts(fig))
        assert "gw_awq" in shown and "rtn" not in shown
        assert fig.axes[0].get_xlabel().endswith("not drawn: rtn")


def test_a_method_equal_to_the_original_draws():
    frame = summary({"rtn": 0.0})
    frame[["delta_nll_low", "delta_nll_high"]] = 0.0
    assert "rtn" in texts(study.delta_nll(frame, COLOURS))
    style.to_svg(study.perplexity_bits(frame, COLOURS), {})


def test_errors_of_zero_draw():
    frame = layers().assign(relative_error=0.0)
    style.to_svg(linears.error_by_layer(frame, COLOURS), {})
    style.to_svg(linears.error_by_kind(frame), {})


def test_without_a_search_the_alpha_figure_says_so():
    fig = linears.alpha_by_layer(layers(alpha=math.nan), COLOURS)
    assert any("searches" in text for text in texts(fig))


def test_a_single_method_has_no_pairs():
    assert any("only one" in text for text in texts(pairs(comparisons().iloc[:0], ["rtn"])))


def test_a_name_with_dollars_is_no_formula():
    name = "$\\frac{$"
    svg = style.to_svg(study.delta_nll(summary({name: 0.1}), style.method_colours([name])), {})
    assert svg.startswith("<?xml")


def values(measure: str, kl: dict[str, float]) -> list[dict]:
    return [{"measure": measure, "method": m, "value": 0.8 * x, "delta_nll": x, "kl": x} for m, x in kl.items()]


@pytest.mark.parametrize(("kl", "panels"), [({"rtn": 0.3, "gw_awq": 0.05}, 2), ({"rtn": 0.0}, 1)])
def test_a_prediction_stands_against_the_measured_kl_with_the_identity(kl: dict[str, float], panels: int):
    rows = [*values("log total MSE", {"rtn": 0.3, "gw_awq": 0.1}), *values(PREDICTED, kl)]
    fig = error_against_nll({"values": rows}, COLOURS)
    assert len(fig.axes) == panels
    style.to_svg(fig, {})
    if panels == 2:
        ax = fig.axes[1]
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        (line,) = [each for each in ax.lines if len(each.get_xdata()) == 2]
        assert list(line.get_xdata()) == list(line.get_ydata()) == [pytest.approx(0.04), pytest.approx(0.3)]


def test_the_same_data_gives_the_same_svg_with_its_provenance(tmp_path):
    provenance = {"model": "<m> & 'n'", "seed": 42}
    for name in ("a.svg", "b.svg"):
        style.save(study.delta_nll(summary({"rtn": 0.3}), COLOURS), tmp_path / "sub" / name, provenance)
    first, second = ((tmp_path / "sub" / name).read_bytes() for name in ("a.svg", "b.svg"))
    assert first == second
    described = ElementTree.fromstring(first).find(".//{http://purl.org/dc/elements/1.1/}description")
    assert json.loads(described.text) == provenance
    assert b"<dc:date>" not in first


@pytest.mark.parametrize(
    ("swept", "labels", "lines"),
    [
        ({"group_size": [128, 32, 64]}, ["32", "64", "128"], 1),
        ({"noise_std": [0.01, 0.001]}, ["0.001", "0.01"], 1),
        ({"salience": ["l2", "l1", "praq"]}, ["l2", "l1", "praq"], 1),
        ({"symmetric": [True, False]}, ["True", "False"], 1),
        ({"salience": ["l1", "l2"], "bits": [4, 3]}, ["l1", "l2"], 2),
    ],
)
def test_a_sweep_over_numbers_words_and_switches(swept: dict[str, list], labels: list[str], lines: int) -> None:
    """Numbers in their order on a line; words and switches as they were written, apart."""
    values = [dict(zip(swept, chosen, strict=True)) for chosen in itertools.product(*swept.values())]
    names = [f"m{i}" for i in range(len(values))]
    deltas = {name: 0.1 * (i + 1) for i, name in enumerate(names)}
    rows = pd.DataFrame(
        {
            "method": names,
            "recipe": [json.dumps({"rounding": "nearest"} | chosen) for chosen in values],
            "delta_nll": deltas.values(),
            "delta_nll_low": [x - 0.01 for x in deltas.values()],
            "delta_nll_high": [x + 0.02 for x in deltas.values()],
        }
    )
    ax = study.sweep(rows, names).axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == labels
    assert ax.get_xlabel() == next(iter(swept)) and len(ax.containers) == lines
    for container in ax.containers:
        line = container[0]
        assert line.get_linestyle() == ("-" if labels[0][0].isdigit() else "None")
        for at, delta in zip(*line.get_data(), strict=True):
            found = values[round(delta / 0.1) - 1][next(iter(swept))]
            assert labels[int(at)] == f"{found}"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([{"epochs": 4, "rate": 0.1}, {"epochs": 2, "rate": 0.1}], ["epochs 4", "epochs 2"]),
        ([None, {"bits": 8, "needed": True}], ["none", "{bits: 8, needed: true}"]),
        ([None, {"a": 1, "b": "x"}, {"a": 2, "b": "y"}], ["none", "a 1, b x", "a 2, b y"]),
        (["nearest", "gptq", "gptq2"], ["nearest", "gptq", "gptq2"]),
    ],
)
def test_a_sweep_over_objects(values: list[Any], labels: list[str]) -> None:
    """What they do not share tells them apart, on the axis and in the legend."""
    names = [f"m{i}" for i in range(len(values))]
    rows = pd.DataFrame({"method": names, "delta_nll": 0.1, "delta_nll_low": 0.0, "delta_nll_high": 0.2})
    idle = [None, *[64] * (len(values) - 1)]  # as n_calib is where nothing reads it
    rows["recipe"] = [json.dumps({"n_calib": n, "tune": value}) for n, value in zip(idle, values, strict=True)]
    ax = study.sweep(rows, names).axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == labels and ax.get_xlabel() == "tune"
    rows["recipe"] = [json.dumps({"bits": 4 - (i > 0), "tune": value}) for i, value in enumerate(values)]
    key, table = study.sweep_table(rows, names)
    assert key == "bits" and list(table.line) == [f"tune {label}" for label in labels]


def test_each_question_that_is_drawn_has_a_file() -> None:
    """The rule's list is by hand: the DAG is built without what draws."""
    rules = (Path(__file__).parents[3] / "rules/report.smk").read_text()
    listed = re.findall(r'"([\w-]+)"', rules.partition("DRAWN_QUESTIONS = [")[2].partition("]")[0])
    assert listed == [*ENDS, *OWN]


@pytest.mark.parametrize("span", [1.8, 2, 3, 10, 1e3, 1e6])
def test_numbers_on_a_logarithmic_axis_do_not_meet(span: float) -> None:
    ax = Figure().subplots()
    log_ticks(ax, ax.xaxis, [0.13, 0.13 * span])
    ticks, (low, high) = ax.get_xticks(), ax.get_xlim()
    assert 2 <= len(ticks) <= 8 and np.diff(np.log(ticks)).min() >= np.log(high / low) / 7


# ---- labels that stand apart, however many


def answer(first: str, second: str, group: str, dataset: str = "d", **more: Any) -> dict[str, Any]:
    numbers = {"delta_nll": 0.1, "delta_nll_low": 0.0, "delta_nll_high": 0.2, "p_holm": 0.01, "sequences": 9}
    return {"first": first, "second": second, "group": group, "dataset": dataset, "by": "nll", **numbers, **more}


def apart(fig: Figure) -> bool:
    """Whether no two labels of the y axis touch."""
    boxes = [label.get_window_extent() for label in fig.axes[0].get_yticklabels()]
    return all(not a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("datasets", [("d",), ("python_reference", "docstrings")])
@pytest.mark.parametrize("group", ["", "bits 4", "group_size 64, scope shared, rounding gptq, clip: true, bits 4"])
def test_labels_of_many_pairs_do_not_touch(group: str, datasets: tuple[str, ...]) -> None:
    """14 pairs of one name, whose groups tell them apart, on one data set or two."""
    rows = [answer("gw_praq", "gw_awq", f"{group} {i}".strip(), dataset) for i in range(14) for dataset in datasets]
    fig = forest({"question": "Which?", "pairs": rows}, ("PRAQ", "AWQ"))
    labels = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert apart(fig) and (not group or len(set(labels)) == len(rows))
    assert max(len(line) for label in labels for line in label.split("\n")) <= 51


def test_marks_of_many_methods_stand_apart() -> None:
    """A part's methods one above the other, none in the next part's room."""
    names = [f"method_{i}" for i in range(14)]
    rows = [answer(kind, "original", f"kind, {name}") for kind in ("attention", "MLP") for name in names]
    fig = damage({"pairs": rows}, style.method_colours(names))
    places = [line.get_transform().transform((0.1, line.get_ydata()[0]))[1] for line in fig.axes[0].lines[:-1]]
    assert len(places) == 28 and np.diff(np.sort(places)).min() >= 6 / 72 * fig.dpi
    assert apart(fig)
