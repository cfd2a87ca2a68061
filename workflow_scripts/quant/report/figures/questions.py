"""Figures of the research questions: paired differences, layer error against delta_nll, and a part's damage."""

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quant.comparison.measures import MEASURES, PREDICTED
from quant.comparison.numbers import interval, signed
from quant.comparison.verdicts import difference_in
from quant.report.figures.axes import log_ticks
from quant.report.figures.style import (
    AWQ_BETTER,
    FAINT,
    INK,
    PRAQ_BETTER,
    canvas,
    message,
    method_markers,
    short,
    styled,
    title_of,
)

FIRST_BETTER, SECOND_BETTER = PRAQ_BETTER, AWQ_BETTER
LONGEST = 44  # rows of a forest; a layer a row needs as many
LINE, BETWEEN = 0.17, 0.13  # inches of a label's line, and from one label to the next
WIDE = 51  # characters of a label's line, as many as two names have


@styled
def forest(answered: dict[str, Any], ends: tuple[str, str]) -> Figure:
    """An answer's paired differences with their 95 % intervals, a row each; ends: what lies left and right of 0."""
    pairs = answered["pairs"][:LONGEST]
    found = [difference_in(row) for row in pairs]
    column = MEASURES[found[0].by].difference
    labels = _labels(pairs)
    lines = max(1 + label.count("\n") for label in labels)
    fig, ax = canvas(2.7, max((LINE * lines + BETWEEN) * len(pairs) + 0.5, 1.1))
    finite = np.array([[x.low, x.high] for x in found if np.isfinite([x.low, x.high]).all()]).ravel()
    reach = max(np.abs(finite).max() if finite.size else 0, 1e-5) * 1.12
    for y, x in enumerate(reversed(found)):
        colour = {"better": FIRST_BETTER, "worse": SECOND_BETTER}.get(x.outcome, FAINT)
        ax.hlines(y, max(x.low, -reach), min(x.high, reach), color=colour, lw=2.6)
        ax.plot(x.delta, y, "o", ms=7, color=colour, mec="white")
        digits = 5 if reach < 0.01 else 4 if reach < 0.1 else 3
        ax.text(1.03, y, f"{signed(x.delta, digits)}  {interval(x.low, x.high, digits)}", va="center", fontsize=9,
                transform=ax.get_yaxis_transform())  # fmt: skip
    ax.axvline(0, color=INK, lw=1.2)
    ax.set_yticks(range(len(labels)), labels[::-1])
    ax.set(xlim=(-reach, reach), ylim=(-0.7, len(pairs) - 0.3), xlabel=f"{column}, nats per token")
    ax.locator_params(axis="x", nbins=5)
    ax.grid(axis="y", visible=False)
    note = f"◀ {ends[0]} better   ·   {ends[1]} better ▶\n95 % intervals; grey: no difference shown (corrected)"
    title_of(ax, _wrapped(answered["question"]), note)
    return fig


@styled
def damage(answered: dict[str, Any], colours: dict[str, str]) -> Figure:
    """Rise of the NLL with one part quantised, a colour a method; parts of the first kind of part, worst first."""
    rows = [row for row in answered["pairs"] if row["second"] == "original"]
    methods = dict.fromkeys(row["group"].split(", ")[-1] for row in rows)
    parts = list(dict.fromkeys((row["group"].split(", ")[0], row["first"]) for row in rows))
    height = max(0.3, 0.12 * len(methods))  # of a part, inches
    fig, ax = canvas(3.6, max(height * len(parts) + 0.4, 1.2))
    markers, gap = method_markers(colours), (0.5 if len(methods) <= 3 else 0.85) / max(len(methods), 1)
    for i, method in enumerate(methods):
        shift = gap * (i - (len(methods) - 1) / 2)
        for y, part in enumerate(reversed(parts)):
            for row in rows:
                if row["group"] == f"{part[0]}, {method}" and row["first"] == part[1]:
                    x = difference_in(row)
                    ax.hlines(y - shift, x.low, x.high, color=colours.get(method, INK), lw=2.2)
                    ax.plot(x.delta, y - shift, markers.get(method, "o"), ms=6, mec="white",
                            color=colours.get(method, INK), label=method if y == len(parts) - 1 else None)  # fmt: skip
    ax.axvline(0, color=INK, lw=1.2)
    names = [f"layer {name}" if by == "layer" else name for by, name in reversed(parts)]
    ax.set_yticks(range(len(parts)), names)
    ax.set(ylim=(-0.7, len(parts) - 0.3), xlabel="delta_nll with this part alone quantised, nats per token")
    ax.grid(axis="y", visible=False)
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.02, 0.5))
    title_of(ax, "Damage of one part at a time, 95 % interval", "")
    return fig


@styled
def error_against_nll(answered: dict[str, Any], colours: dict[str, str]) -> Figure:
    """A panel for each measure of layer error, a point a method: against delta_nll, and what was predicted in nats
    against the measured KL, both on logarithmic axes, with the line on which they are the same."""
    table = pd.DataFrame(answered["values"])
    measures = [name for name in dict.fromkeys(table.measure) if name != PREDICTED or _both_known(table)]
    fig = Figure(figsize=(5.4, 2.1 * len(measures)))
    axes = fig.subplots(len(measures), 1, squeeze=False, gridspec_kw={"hspace": 0.75})[:, 0]
    markers = method_markers(colours)
    for ax, measure in zip(axes, measures, strict=True):
        against = "kl" if measure == PREDICTED else "delta_nll"
        rows = table[table.measure == measure]
        rows = rows[(rows.value > 0) & (rows.kl > 0)] if measure == PREDICTED else rows
        for row in rows.itertuples():
            ax.plot(row.value, getattr(row, against), markers.get(row.method, "o"), ms=7, mec="white",
                    color=colours.get(row.method, INK), label=short(row.method))  # fmt: skip
        if measure == PREDICTED:
            _same_axes(ax, rows)
        else:
            ax.set(xlabel=measure, ylabel="delta_nll")
            ax.margins(0.08)
    handles, names = axes[0].get_legend_handles_labels()
    fig.legend(handles, names, frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(0.92, 0.9))
    title_of(axes[0], "Layer error against the rise of the NLL, by method", "")
    return fig


def _both_known(table: pd.DataFrame) -> bool:
    """Whether there is a prediction and a measured KL to draw on logarithmic axes."""
    rows = table[table.measure == PREDICTED]
    return "kl" in rows and bool(((rows.value > 0) & (rows.kl > 0)).any())


def _same_axes(ax: Axes, rows: pd.DataFrame) -> None:
    """Prediction and measured KL on logarithmic axes, and the identity."""
    ends = [min(rows.value.min(), rows.kl.min()), max(rows.value.max(), rows.kl.max())]
    ax.plot(ends, ends, color=FAINT, lw=1.2, ls=(0, (4, 2)), zorder=1)
    log_ticks(ax, ax.xaxis, rows.value)
    log_ticks(ax, ax.yaxis, rows.kl)
    ax.set(xlabel="predicted from the end loss, nats per token (log scale)", ylabel="KL (log scale)")
    ax.set_title("Predicted against measured; dashed: the same", x=0, fontsize=9.5, pad=5)


# what lies left and right of 0, by question
ENDS = {
    "praq": ("PRAQ", "AWQ"),
    "cost": ("quantised", "original"),
    "risk": ("risky rows alone", "other rows alone"),
    "robust": ("Robust-PRAQ", "PRAQ"),
    "norm": ("l2", "l1"),
    "symmetry": ("asymmetric", "symmetric"),
    "flips": ("greedy flips", "nearest"),
    "group-size": ("smaller", "larger"),
    "per-channel": ("group-wise", "per channel"),
    "autoawq": ("AutoAWQ", "ours"),
    "autoround": ("AutoRound", "ours"),
    "llmcompressor": ("llm-compressor's", "ours"),
}
OWN = ("sensitivity", "layer-error")


def draw(answers: dict[str, list[dict[str, Any]]], colours: dict[str, str]) -> dict[str, Figure]:
    """A figure of each question in ENDS and OWN, by model/questions/anchor; one without numbers says so."""
    drawn = {}
    for model, answered in answers.items():
        for one in answered:
            key, anchor = f"{model}/questions/{one['anchor']}", one["anchor"]
            if anchor in (*ENDS, *OWN) and not (one["values"] if anchor == "layer-error" else one["pairs"]):
                drawn[key] = message(_wrapped(one["question"]), "Not asked, or nothing to draw.")
            elif anchor in ENDS:
                drawn[key] = forest(one, ENDS[anchor])
            elif anchor == "sensitivity":
                drawn[key] = damage(one, colours)
            elif anchor == "layer-error":
                drawn[key] = error_against_nll(one, colours)
    return drawn


def _labels(pairs: list[dict[str, Any]]) -> list[str]:
    """What each row is, with its group where names repeat, and its data set where there are several."""
    several = len({row["dataset"] for row in pairs}) > 1
    names = [f"{short(row['first'], 24)} − {short(row['second'], 24)}" for row in pairs]
    twice = {name for name in names if names.count(name) > 1}
    found = []
    for name, row in zip(names, pairs, strict=True):
        marks = ([row["group"]] if name in twice else []) + ([row["dataset"]] if several else [])
        joined = " · ".join(marks)
        lines = [joined] if len(joined) <= WIDE else [line for mark in marks for line in textwrap.wrap(mark, WIDE)]
        found.append("\n".join(filter(None, [name, *lines])))
    return found


def _wrapped(text: str, width: int = 52) -> str:
    return "\n".join(textwrap.wrap(text, width))
