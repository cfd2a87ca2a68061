"""Size, perplexity and the rise of the NLL of every method; rows of one model and data set."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import CARETRIGHT, CARETUP

from quant.comparison.numbers import QUALITY_BANDS, interval, signed
from quant.comparison.summary import recipes_of
from quant.files.units import megabytes
from quant.recipe.key import shown
from quant.records.method import REAL
from quant.report.figures.axes import log_ticks
from quant.report.figures.style import (
    FAINT,
    INK,
    RING,
    SOFT,
    Label,
    canvas,
    label_right,
    message,
    method_colours,
    method_markers,
    short,
    styled,
    title_of,
)

# an axis ends at so many times the median
WILD = 6


def pareto_front(bits: Sequence[float], ppl: Sequence[float]) -> list[int]:
    """Positions of the points that no other beats in both bits and perplexity, by rising bits."""
    front: list[int] = []
    for i in sorted(range(len(bits)), key=lambda i: (bits[i], ppl[i])):
        if not front or ppl[i] < ppl[front[-1]]:
            front.append(i)
    return front


@styled
def perplexity_bits(summary: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Perplexity against bits per weight with the Pareto front; rows of one model and data set."""
    original, quantised = _split(summary)
    shown = quantised[np.isfinite(quantised.ppl)].reset_index(drop=True)
    if shown.empty:
        return message("Perplexity against bits per weight", "No method with a finite perplexity.")
    fig, ax, height, front = _tradeoff(shown.bits_per_weight, shown.ppl, WILD * shown.ppl.median(), shown, colours)
    floor = original.ppl.tolist()
    for ppl in floor:
        ax.axhline(ppl, color=INK, lw=1.2, ls=(0, (4, 2)))
    log_ticks(ax, ax.xaxis, shown.bits_per_weight, ticks=(1, 2, 3, 4, 5, 6, 8, 10, 12, 16))
    log_ticks(ax, ax.yaxis, [*height, *floor])
    texts = [f"{short(row.method)}  {_plain(row.ppl)}" for row in shown.itertuples()]
    _label_points(ax, shown.bits_per_weight, height, front, texts, shown, colours)
    ax.set(xlabel="bits per weight (log scale)" + _left_out(quantised, shown), ylabel="perplexity (log scale)")
    note = "bold, on the grey line: no other is both smaller and better"
    title_of(ax, "Perplexity against bits per weight", note)
    for ppl in floor:
        ax.annotate(f"original {ppl:.2f}", (0.02, ppl), xycoords=("axes fraction", "data"), xytext=(0, 3),
                    textcoords="offset points", fontsize=9)  # fmt: skip
    return fig


@styled
def size_delta_nll(summary: pd.DataFrame, colours: dict[str, str], chosen: str | None = None) -> Figure:
    """Rise of the NLL, with its interval, against the checkpoint's size, the Pareto front, and a ring around the method
    to deploy; rows of one model and data set."""
    original, quantised = _split(summary)
    shown = quantised[np.isfinite(quantised.delta_nll)].reset_index(drop=True)
    if shown.empty:
        return message("Damage against size", "No method with a finite NLL.")
    top, hollow = max(WILD * shown.delta_nll.median(), 0.06), ~shown.storage.isin(REAL)
    fig, ax, height, front = _tradeoff(shown.size_mb, shown.delta_nll, top, shown, colours, hollow, chosen)
    low, high = (shown[end].fillna(shown.delta_nll).clip(upper=top) for end in ("delta_nll_low", "delta_nll_high"))
    ax.vlines(shown.size_mb, low, high, colors=shown.method.map(colours), lw=2, zorder=1.9)
    for i in shown.index[shown.method == chosen]:
        ax.plot(shown.size_mb[i], height[i], "o", ms=17, zorder=3, **RING)
    ax.axhline(0, color=INK, lw=1.2, ls=(0, (4, 2)))
    log_ticks(ax, ax.xaxis, [*shown.size_mb, *original.size_mb])
    texts = [f"{short(row.method)}  {megabytes(row.size_mb)} MB" for row in shown.itertuples()]
    _label_points(ax, shown.size_mb, height, front, texts, shown, colours, chosen)
    for size in original.size_mb:
        ax.axvline(size, color=INK, lw=1.2, ls=(0, (4, 2)))
    ax.set(xlabel="size, MB (log scale)" + _left_out(quantised, shown), ylabel="delta_nll, nats per token")
    ringed = "; ringed: what to take" if chosen in set(shown.method) else ""
    title_of(ax, "Damage against size, 95 % interval", "filled: packed, hollow: simulated; dashed: the original\n"
             f"bold: no other is both smaller and better{ringed}")  # fmt: skip
    return fig


def _tradeoff(
    x: pd.Series,
    y: pd.Series,
    top: float,
    rows: pd.DataFrame,
    colours: dict[str, str],
    hollow: pd.Series | None = None,
    chosen: str | None = None,
) -> tuple[Figure, Axes, pd.Series, list[int]]:
    """A point per row and the Pareto front of low x and y; what is above `top`, gone wild, is an arrow there.

    Returns the heights that were drawn and the rows on the front.
    """
    fig, ax = canvas(2.7, max(3.0, 0.24 * len(rows) + 0.6))
    height, markers, front = y.clip(upper=top), method_markers(colours), pareto_front(x.tolist(), y.tolist())
    ax.plot(x[front], height[front], drawstyle="steps-post", color=FAINT, lw=1.2, zorder=2)
    for i, method in sorted(enumerate(rows.method), key=lambda each: each[1] == chosen):  # the chosen one on top
        fill, edge = (colours[method], "white") if hollow is None or not hollow[i] else ("white", colours[method])
        ax.plot(x[i], height[i], marker=markers[method] if y[i] <= top else CARETUP, ms=8, color=fill, mec=edge)
    return fig, ax, height, front


def _label_points(
    ax: Axes,
    x: pd.Series,
    height: pd.Series,
    front: list[int],
    texts: list[str],
    rows: pd.DataFrame,
    colours: dict[str, str],
    chosen: str | None = None,
) -> None:
    """Names at the right, tied to their points; bold on the front, a ring around the chosen one."""
    labels = [
        Label(x[i], height[i], texts[i], method, i in front, method == chosen) for i, method in enumerate(rows.method)
    ]
    label_right(ax, labels, colours, leaders=True)


@styled
def delta_nll(summary: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Rise of the NLL over the original with its interval, best first; rows of one model and data set."""
    original, quantised = _split(summary)
    rows = quantised[np.isfinite(quantised.delta_nll)].sort_values("delta_nll", ascending=False, kind="stable")
    if rows.empty:
        return message("Rise of the NLL over the original", "No method with a finite NLL.")
    fig, ax = canvas(2.7, 0.3 * len(rows) + 0.8)
    markers, y = method_markers(colours), np.arange(len(rows))
    low, high = rows.delta_nll_low.fillna(rows.delta_nll), rows.delta_nll_high.fillna(rows.delta_nll)
    # a method gone wild leaves the axis, as an arrow, rather than pressing the others together
    right = max(min(high.max(), WILD * high.median()) * 1.06, 0.06)
    left = min(low.min() * 1.3, -0.015 * right)
    _shade_bands(ax, left, right)
    rows_above = _own_interval(ax, original, len(rows), right)
    for i, row in zip(y, rows.itertuples(), strict=True):
        ax.hlines(i, low[row.Index], high[row.Index], color=colours[row.method], lw=2.4)
        marker, x = (markers[row.method], row.delta_nll) if row.delta_nll < right else (CARETRIGHT, right)
        ax.plot(x, i, marker=marker, ms=8, color=colours[row.method], mec="white", clip_on=False)
        text = f"{signed(row.delta_nll)}  {interval(row.delta_nll_low, row.delta_nll_high)}"
        ax.text(1.03, float(i), text, transform=ax.get_yaxis_transform(), va="center", fontsize=9)
    ax.axvline(0, color=INK, lw=1.2)
    ax.set_yticks(y, [short(method) for method in rows.method])
    ax.set(
        xlim=(left, right),
        ylim=(-0.7, len(rows) - 0.3 + rows_above),
        xlabel="delta_nll, nats per token (0: the original)",
    )
    ax.set_xlabel(ax.get_xlabel() + _left_out(quantised, rows))
    ax.grid(axis="y", visible=False)
    title_of(ax, "Rise of the NLL over the original, 95 % interval", "")
    return fig


def in_words(values: Sequence[Any]) -> list[Any]:
    """Values of a key; of objects what they do not share, or all of it."""
    objects = [value for value in values if isinstance(value, dict)]
    varied = [key for key in (objects or [{}])[0] if len({repr(each[key]) for each in objects}) > 1]

    def word(value: Any) -> Any:
        if isinstance(value, dict):
            return ", ".join(f"{key} {shown(value[key])}" for key in varied) or shown(value)
        return "none" if value is None else value

    return [word(value) for value in values]


def sweep_table(summary: pd.DataFrame, members: Sequence[str]) -> tuple[str, pd.DataFrame]:
    """What a family of methods varies first, and its rows with that value (x) and the others' label (line). What a
    value leaves without effect, as nearest does n_calib, is None there and varies with it."""
    rows = summary[summary.method.isin(members)].copy()
    known = recipes_of(rows)
    recipes = [known[method] for method in rows.method]
    if any(recipe.get("budget") is not None for recipe in recipes):
        rows["x"] = rows.bits_per_weight.round(2)
        rows["line"] = ["one width" if recipe.get("budget") is None else "mixed" for recipe in recipes]
        return "bits per weight", rows
    held = {
        key: [recipe.get(key) for recipe in recipes] for key in dict.fromkeys(key for each in recipes for key in each)
    }
    varied = [key for key, values in held.items() if len(set(map(repr, values))) > 1]
    chosen = [key for key in varied if None not in held[key] or any(isinstance(each, dict) for each in held[key])]
    first, *others = chosen or varied or ["bits"]
    rows["x"] = in_words(held[first])
    labels = [in_words(held[key]) for key in others]
    rows["line"] = [
        ", ".join(f"{key} {each[i]}" for key, each in zip(others, labels, strict=True)) for i in range(len(rows))
    ]
    return first, rows


@styled
def sweep(summary: pd.DataFrame, members: Sequence[str], colours: dict[str, str] | None = None) -> Figure:
    """delta_nll with its interval over the value that a family of methods varies; rows of one model and data set."""
    key, rows = sweep_table(summary, members)
    rows = rows[np.isfinite(rows.delta_nll)]
    if rows.empty:
        return message(f"Sweep of {key}", "No method with a finite NLL.")
    fig, ax = canvas(4.2, 2.6)
    numbers = pd.api.types.is_numeric_dtype(rows.x) and not pd.api.types.is_bool_dtype(rows.x)
    values = sorted(rows.x.unique()) if numbers else list(rows.x.unique())  # words as they were written
    rows = rows.assign(place=rows.x.map(values.index)).sort_values("place")
    for i, (name, line) in enumerate(rows.groupby("line")):
        span = [line.delta_nll - line.delta_nll_low, line.delta_nll_high - line.delta_nll]
        ax.errorbar(line.place, line.delta_nll, yerr=span, color=(SOFT, FAINT)[i % 2], ls="-" if numbers else "",
                    capsize=3, marker="osD^v"[i % 5], ms=4, label=name)  # fmt: skip
    colours = colours or method_colours(members)
    sns.scatterplot(rows, x="place", y="delta_nll", hue="method", style="method", palette=colours, s=70, zorder=3,
                    markers=method_markers(colours), legend=False, ax=ax)  # fmt: skip
    ax.set_xticks(range(len(values)), [f"{value:g}" if numbers else str(value) for value in values])
    ax.set_xlim(-0.5, len(values) - 0.5)
    ax.set(xlabel=key, ylabel="delta_nll, nats per token")
    if rows.line.nunique() > 1:
        ax.legend(frameon=False, fontsize=8.5)
    title_of(ax, f"Rise of the NLL over {key}, 95 % interval", "")
    return fig


def _split(summary: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The original's row, and the quantised methods' rows."""
    is_original = summary.method == "original"
    return summary[is_original], summary[~is_original]


def _left_out(quantised: pd.DataFrame, shown: pd.DataFrame) -> str:
    """A line under the axis that names the methods without a finite value."""
    missing = [short(method) for method in quantised.method if method not in set(shown.method)]
    return f"\nnot finite, so not drawn: {', '.join(missing)}" if missing else ""


def _shade_bands(ax: Axes, left: float, right: float) -> None:
    """The quality bands behind a delta_nll axis: a perplexity increase of p is ln(1 + p) nats."""
    begin = left
    for i, (name, increase) in enumerate(QUALITY_BANDS):
        end = min(math.log1p(increase), right)
        if end <= begin:
            break
        ax.axvspan(begin, end, color=("#e3f1ea", "#f0f5e1", "#fdf3da", "#fbe6df")[i], lw=0, zorder=0)
        if (end - begin) > 0.13 * (right - left):
            ax.text((begin + end) / 2, 1.01, name, transform=ax.get_xaxis_transform(), ha="center", fontsize=8.5,
                    color="#5a626b")  # fmt: skip
        begin = end


def _own_interval(ax: Axes, original: pd.DataFrame, place: int, right: float) -> int:
    """Above the methods, how far the original's own NLL is known from these sequences; the rows that it takes."""
    if "nll_high" not in original or original.empty or not np.isfinite(original.nll_high - original.nll_low).all():
        return 0
    half = float((original.nll_high - original.nll_low).iloc[0] / 2)
    ax.hlines(place, 0, min(half, right), color=SOFT, lw=2.4)
    ax.plot([half] if half < right else [right], [place], "|" if half < right else CARETRIGHT, color=SOFT, ms=9)
    ax.text(1.03, place, f"±{half:.3f}  the original's own", transform=ax.get_yaxis_transform(), va="center",
            fontsize=9, color=SOFT)  # fmt: skip
    return 1


def _plain(ppl: float) -> str:
    return f"{ppl:.2f}" if ppl < 1e4 else f"{ppl:.2g}"
