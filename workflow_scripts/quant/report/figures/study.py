"""The report's figures: data frames in, matplotlib figures out, and one way to save them.

Every figure is drawn on white, under 6 inches wide, so that it stays readable on a telephone. A method keeps its
colour and marker in all of them; `colours` is always `method_colours` of every configured method.
"""

import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.markers import CARETRIGHT, CARETUP
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from scipy.optimize import isotonic_regression

from quant.comparison.numbers import LEVEL, QUALITY_BANDS, interval, linear_kind, signed
from quant.files.artifacts import write_text

# Okabe and Ito's colours without yellow and black, then those of Tol's muted scheme that stay apart from them
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
    "#882255", "#332288", "#999933", "#44AA99", "#661100", "#777777",
)  # fmt: skip
MARKERS = "osD^v<>phdX"
INK, FAINT, RULE = "#1b1f24", "#8a929b", "#d9dde2"
# an axis ends at so many times the median
WILD = 6
PRAQ_BETTER, AWQ_BETTER = "#0072B2", "#D55E00"

STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.color": "#e8ebee",
    "svg.fonttype": "path",
    "svg.hashsalt": "quant",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
styled = matplotlib.rc_context(STYLE)


class Label(NamedTuple):
    """A name beside the axes, tied to a point of the data."""

    x: float
    y: float
    text: str
    method: str
    bold: bool = False


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """A colour per method in the order given; after twelve they repeat with another marker."""
    return {method: PALETTE[i % len(PALETTE)] for i, method in enumerate(methods)}


def method_markers(colours: dict[str, str]) -> dict[str, str]:
    """A marker per method; 11 markers against 12 colours, so that no pair repeats before 132 methods."""
    return {method: MARKERS[i % len(MARKERS)] for i, method in enumerate(colours)}


def spread(wanted: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Positions nearest to `wanted` (least squares) at least `gap` apart, inside low..high where they fit."""
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(order))
    moved = isotonic_regression(np.asarray(wanted, dtype=float)[order] - steps).x
    placed = np.empty(len(order))
    placed[order] = np.clip(moved, low, max(low, high - gap * (len(order) - 1))) + steps
    return placed


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
        return _message("Perplexity against bits per weight", "No method with a finite perplexity.")
    fig, ax, height, front = _tradeoff(shown.bits_per_weight, shown.ppl, WILD * shown.ppl.median(), shown, colours)
    floor = original.ppl.tolist()
    for ppl in floor:
        ax.axhline(ppl, color=INK, lw=1.2, ls=(0, (4, 2)))
    _log_ticks(ax, ax.xaxis, shown.bits_per_weight, ticks=(1, 2, 3, 4, 5, 6, 8, 10, 12, 16))
    _log_ticks(ax, ax.yaxis, [*height, *floor])
    texts = [f"{_short(row.method)}  {_plain(row.ppl)}" for row in shown.itertuples()]
    _label_points(ax, shown.bits_per_weight, height, front, texts, shown, colours)
    ax.set(xlabel="bits per weight (log scale)" + _left_out(quantised, shown), ylabel="perplexity (log scale)")
    note = "bold, on the grey line: no other is both smaller and better"
    _title(ax, "Perplexity against bits per weight", note)
    for ppl in floor:
        ax.annotate(f"original {ppl:.2f}", (0.02, ppl), xycoords=("axes fraction", "data"), xytext=(0, 3),
                    textcoords="offset points", fontsize=9)  # fmt: skip
    return fig


@styled
def size_delta_nll(summary: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Rise of the NLL against the checkpoint's size with the Pareto front; rows of one model and data set."""
    original, quantised = _split(summary)
    shown = quantised[np.isfinite(quantised.delta_nll)].reset_index(drop=True)
    if shown.empty:
        return _message("Rise of the NLL against size", "No method with a finite NLL.")
    top, hollow = max(WILD * shown.delta_nll.median(), 0.06), shown.storage != "packed"
    fig, ax, height, front = _tradeoff(shown.size_mb, shown.delta_nll, top, shown, colours, hollow)
    ax.axhline(0, color=INK, lw=1.2, ls=(0, (4, 2)))
    _log_ticks(ax, ax.xaxis, [*shown.size_mb, *original.size_mb])
    texts = [f"{_short(row.method)}  {row.size_mb:,.0f} MB" for row in shown.itertuples()]
    _label_points(ax, shown.size_mb, height, front, texts, shown, colours)
    for size in original.size_mb:
        ax.axvline(size, color=INK, lw=1.2, ls=(0, (4, 2)))
    ax.set(xlabel="size, MB (log scale)" + _left_out(quantised, shown), ylabel="delta_nll, nats per token")
    _title(ax, "Rise of the NLL against size", "dashed: the original; filled: packed, hollow: simulated\n"
           "bold, on the grey line: no other is both smaller and better")  # fmt: skip
    return fig


def _tradeoff(
    x: pd.Series, y: pd.Series, top: float, rows: pd.DataFrame, colours: dict[str, str], hollow: pd.Series | None = None
) -> tuple[Figure, Axes, pd.Series, list[int]]:
    """A point per row and the Pareto front of low x and y; what is above `top`, gone wild, is an arrow there.

    Returns the heights that were drawn and the rows on the front.
    """
    fig, ax = _canvas(3.2, max(3.2, 0.24 * len(rows) + 0.6))
    height, markers, front = y.clip(upper=top), method_markers(colours), pareto_front(x.tolist(), y.tolist())
    ax.plot(x[front], height[front], drawstyle="steps-post", color=FAINT, lw=1.2, zorder=2)
    for i, method in enumerate(rows.method):
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
) -> None:
    """Names at the right, tied to their points; bold on the front."""
    labels = [Label(x[i], height[i], texts[i], method, i in front) for i, method in enumerate(rows.method)]
    _label_right(ax, labels, colours, leaders=True)


@styled
def delta_nll(summary: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Rise of the NLL over the original with its interval, best first; rows of one model and data set."""
    _, quantised = _split(summary)
    rows = quantised[np.isfinite(quantised.delta_nll)].sort_values("delta_nll", ascending=False, kind="stable")
    if rows.empty:
        return _message("Rise of the NLL over the original", "No method with a finite NLL.")
    fig, ax = _canvas(2.7, 0.3 * len(rows) + 0.5)
    markers, y = method_markers(colours), np.arange(len(rows))
    low, high = rows.delta_nll_low.fillna(rows.delta_nll), rows.delta_nll_high.fillna(rows.delta_nll)
    # a method gone wild leaves the axis, as an arrow, rather than pressing the others together
    right = max(min(high.max(), WILD * high.median()) * 1.06, 0.06)
    left = min(low.min() * 1.3, -0.015 * right)
    _shade_bands(ax, left, right)
    for i, row in zip(y, rows.itertuples(), strict=True):
        ax.hlines(i, low[row.Index], high[row.Index], color=colours[row.method], lw=2.4)
        marker, x = (markers[row.method], row.delta_nll) if row.delta_nll < right else (CARETRIGHT, right)
        ax.plot(x, i, marker=marker, ms=8, color=colours[row.method], mec="white", clip_on=False)
        text = f"{signed(row.delta_nll)}  {interval(row.delta_nll_low, row.delta_nll_high)}"
        ax.text(1.03, i, text, transform=ax.get_yaxis_transform(), va="center", fontsize=9)
    ax.axvline(0, color=INK, lw=1.2)
    ax.set_yticks(y, [_short(method) for method in rows.method])
    ax.set(xlim=(left, right), ylim=(-0.7, len(rows) - 0.3), xlabel="delta_nll, nats per token (0: the original)")
    ax.set_xlabel(ax.get_xlabel() + _left_out(quantised, rows))
    ax.grid(axis="y", visible=False)
    _title(ax, "Rise of the NLL over the original, 95 % interval", "")
    return fig


def sweep_table(summary: pd.DataFrame, members: Sequence[str]) -> tuple[str, pd.DataFrame]:
    """What a family of methods varies first, and its rows with that value (x) and the others' label (line)."""
    rows = summary[summary.method.isin(members)].copy()
    recipes = pd.DataFrame([json.loads(text) for text in rows.recipe], index=rows.index)
    first, *others = [key for key in recipes if recipes[key].nunique() > 1] or ["bits"]
    rows["x"] = recipes[first]
    rows["line"] = [", ".join(f"{key} {values[key]}" for key in others) for values in recipes.to_dict("records")]
    return first, rows


@styled
def sweep(summary: pd.DataFrame, members: Sequence[str]) -> Figure:
    """delta_nll with its interval over the value that a family of methods varies; rows of one model and data set."""
    key, rows = sweep_table(summary, members)
    rows = rows[np.isfinite(rows.delta_nll)]
    if rows.empty:
        return _message(f"Sweep of {key}", "No method with a finite NLL.")
    fig, ax = _canvas(4.2, 2.6)
    numbers = pd.api.types.is_numeric_dtype(rows.x) and not pd.api.types.is_bool_dtype(rows.x)
    values = sorted(rows.x.unique()) if numbers else list(rows.x.unique())  # words as they were written
    place = rows.x.map(values.index)
    colours = method_colours(rows.line.unique())
    for name, line in rows.assign(place=place).sort_values("place").groupby("line"):
        span = [line.delta_nll - line.delta_nll_low, line.delta_nll_high - line.delta_nll]
        between = "-" if numbers else ""
        ax.errorbar(
            line.place, line.delta_nll, yerr=span, color=colours[name], marker="o", ls=between, capsize=3, label=name
        )
    ax.set_xticks(range(len(values)), [f"{value:g}" if numbers else str(value) for value in values])
    ax.set_xlim(-0.5, len(values) - 0.5)
    ax.set(xlabel=key, ylabel="delta_nll, nats per token")
    if rows.line.nunique() > 1:
        ax.legend(frameon=False, fontsize=8.5)
    _title(ax, f"Rise of the NLL over {key}, 95 % interval", "")
    return fig


@styled
def error_by_layer(layers: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Median relative error of each layer's linears, a line a method; rows of one model."""
    table = layers.pivot_table(index="layer", columns="method", values="relative_error", aggfunc="median")
    title = "Relative error by layer (median of its linears)"
    return _lines(table, colours, title, "relative output error (log scale)", logarithmic=True)


@styled
def alpha_by_layer(layers: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Mean α of each layer's linears, a line a method that searches; rows of one model."""
    searched = layers.dropna(subset=["alpha"])
    if searched.empty:
        return _message("Scale exponent α by layer", "No method here searches a scale.")
    table = searched.pivot_table(index="layer", columns="method", values="alpha", aggfunc="mean")
    title = "Scale exponent α by layer (mean of its linears)"
    return _lines(table, colours, title, "α (0: no scaling, 1: full)", logarithmic=False)


@styled
def error_by_kind(layers: pd.DataFrame) -> Figure:
    """Median relative error in percent, method against kind of linear; rows of one model."""
    kinds = layers.linear.str.rsplit(".", n=1).str[-1]
    table = layers.assign(linear=kinds).pivot_table(
        index="method", columns="linear", values="relative_error", aggfunc="median", sort=False
    )
    table = 100 * table.loc[table.mean(axis=1).sort_values(kind="stable").index]
    n_rows, n_columns = table.shape
    fig, ax = _canvas(0.5 * n_columns, 0.3 * n_rows)
    values = table.to_numpy()
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (positive.min() / 1.3, positive.max()) if positive.size else (0.1, 1)
    # the largest value takes 0.6 of the colour scale: dark ink stays readable on it
    norm = LogNorm(low, low * (high / low) ** (1 / 0.6))
    ax.imshow(np.maximum(values, low), cmap="Blues", norm=norm, aspect="auto")
    _write_cells(ax, [[(_percent(v), INK) for v in row] for row in values], 9)
    _cell_ticks(ax, [_short(method) for method in table.index], list(table.columns), rotation=35)
    ax.set_title("Relative error, %, by kind of linear (median)", x=0, pad=8)
    return fig


@styled
def pairs(comparisons: pd.DataFrame, order: Sequence[str]) -> Figure:
    """Matrix of NLL differences, row minus column; rows of one model and data set, methods as in `order`."""
    title = "Difference between every two methods"
    if comparisons.empty:
        return _message(title, "There is only one method, so there is nothing to compare.")
    n = len(order)
    value, shown = pair_tables(comparisons, order)
    fig, ax = _canvas(0.4 * n, 0.33 * n)
    # square root: differences of 0.01 and of 1 nat both keep a visible shade
    shade = np.where(shown, np.sign(value) * np.sqrt(np.abs(value)), 0)
    limit = max(np.nanmax(np.abs(shade)), 1e-6) * 1.35
    ax.imshow(np.where(np.eye(n), np.nan, shade), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    dark = np.abs(shade) > 0.62 * limit
    cells = [
        [_pair_cell(value[i, j], bool(shown[i, j]), bool(dark[i, j])) if i != j else ("", INK) for j in range(n)]
        for i in range(n)
    ]
    _write_cells(ax, cells, 8.5)
    names = [_short(method) for method in order]
    _cell_ticks(ax, names, names, rotation=45)
    note = "thousandths of a nat, row minus column; blue: the row is better;\nno colour: no difference shown"
    _title(ax, title, note)
    return fig


def pair_tables(comparisons: pd.DataFrame, order: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """[n, n] differences, row minus column (NaN: not compared), and where the corrected p shows one."""
    place = {method: i for i, method in enumerate(order)}
    value = np.full((len(order), len(order)), np.nan)
    shown = np.zeros(value.shape, dtype=bool)
    for row in comparisons.itertuples():
        i, j = place[row.method_a], place[row.method_b]
        value[i, j], value[j, i] = row.delta_nll, -row.delta_nll
        shown[i, j] = shown[j, i] = row.p_holm <= LEVEL
    return value, shown


@styled
def check_mse(check: dict[str, Any]) -> Figure:
    """Relative MSE difference of PRAQ's kept channels against AWQ's, a row a linear; one model's check."""
    rows = pd.DataFrame(check["linears"]).iloc[::-1].reset_index(drop=True)
    percent = rows[["difference", "low", "high"]].div(rows.mse_awq.where(rows.mse_awq > 0), axis=0).fillna(0) * 100
    fig, ax = _canvas(2.8, 0.36 * len(rows) + 0.4)
    for i, row in percent.iterrows():
        shown = rows.p_holm[i] <= LEVEL
        colour = FAINT if not shown else PRAQ_BETTER if row.difference < 0 else AWQ_BETTER
        ax.hlines(i, row.low, row.high, color=colour, lw=2.6)
        ax.plot(row.difference, i, "o", ms=7, color=colour, mec="white")
        text = f"{signed(row.difference, 1)} %  {interval(row.low, row.high, 1)}"
        ax.text(1.03, i, text, transform=ax.get_yaxis_transform(), va="center", fontsize=9)
    reach = max(percent.abs().to_numpy().max(), 0.1) * 1.12
    ax.axvline(0, color=INK, lw=1.2)
    ax.set_yticks(range(len(rows)), [linear_kind(name) for name in rows.linear])
    ax.set(xlim=(-reach, reach), ylim=(-0.7, len(rows) - 0.1), xlabel="MSE of PRAQ's choice against AWQ's, %")
    ax.grid(axis="y", visible=False)
    side = {"transform": ax.get_xaxis_transform(), "fontsize": 9, "va": "top", "y": 0.99}
    ax.text(-reach, s="◀ PRAQ better", color=PRAQ_BETTER, ha="left", **side)
    ax.text(reach, s="AWQ better ▶", color="#b04e00", ha="right", **side)
    kept = f"{100 * check['keep_ratio']:g} % of the channels in 16 bit, the rest INT4;\n"
    kept += "95 % interval; grey: no difference shown"
    _title(ax, f"Layer {check['layer']}: which kept channels err less?", kept)
    return fig


def draw(
    summary: pd.DataFrame,
    comparisons: pd.DataFrame,
    layers: pd.DataFrame,
    checks: dict[str, Any] | None,
    colours: dict[str, str],
    families: dict[str, list[str]] | None = None,
) -> dict[str, Figure]:
    """Every figure of the report by key: model/name or model/dataset/name; families: the methods of each sweep."""
    drawn: dict[str, Figure] = {}
    for (model, dataset), rows in summary.groupby(["model", "dataset"], sort=False):
        order = rows[rows.method != "original"].sort_values("nll", kind="stable").method.tolist()
        compared = comparisons[(comparisons.model == model) & (comparisons.dataset == dataset)]
        drawn[f"{model}/{dataset}/perplexity_bits"] = perplexity_bits(rows, colours)
        drawn[f"{model}/{dataset}/size_delta_nll"] = size_delta_nll(rows, colours)
        drawn[f"{model}/{dataset}/delta_nll"] = delta_nll(rows, colours)
        drawn[f"{model}/{dataset}/pairs"] = pairs(compared, order)
        for family, members in (families or {}).items():
            drawn[f"{model}/{dataset}/sweep-{family}"] = sweep(rows, members)
    for model, rows in layers.groupby("model", sort=False):
        drawn[f"{model}/error_by_layer"] = error_by_layer(rows, colours)
        drawn[f"{model}/error_by_kind"] = error_by_kind(rows)
        drawn[f"{model}/alpha_by_layer"] = alpha_by_layer(rows, colours)
    for model, check in (checks or {}).items():
        drawn[f"{model}/check_mse"] = check_mse(check)
    return drawn


def to_svg(fig: Figure, provenance: dict[str, Any]) -> str:
    """The figure as SVG text, the same for the same data, its provenance as JSON in the metadata."""
    buffer = io.StringIO()
    metadata = {"Date": None, "Description": json.dumps(provenance, sort_keys=True)}
    with matplotlib.rc_context(STYLE):
        fig.savefig(buffer, format="svg", metadata=metadata, bbox_inches="tight", pad_inches=0.08)
    return buffer.getvalue()


def save(fig: Figure, path: str | Path, provenance: dict[str, Any]) -> None:
    """Writes the figure as SVG, making its folder."""
    write_text(path, to_svg(fig, provenance))


def _split(summary: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The original's row, and the quantised methods' rows."""
    is_original = summary.method == "original"
    return summary[is_original], summary[~is_original]


def _left_out(quantised: pd.DataFrame, shown: pd.DataFrame) -> str:
    """A line under the axis that names the methods without a finite value."""
    missing = [_short(method) for method in quantised.method if method not in set(shown.method)]
    return f"\nnot finite, so not drawn: {', '.join(missing)}" if missing else ""


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Axes of that size in inches; what stands outside them is kept when the figure is saved."""
    fig = Figure(figsize=(width, height))
    return fig, fig.add_axes((0, 0, 1, 1))


def _message(title: str, text: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    fig, ax = _canvas(5.2, 1.0)
    ax.axis("off")
    ax.set_title(title)
    ax.text(0, 0.5, text, transform=ax.transAxes)
    return fig


def _title(ax: Axes, title: str, subtitle: str) -> None:
    """A title and under it a smaller line or two."""
    ax.set_title(title, x=0, pad=8 + 12 * (1 + subtitle.count("\n")))
    ax.annotate(subtitle, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=8.5, color="#5a626b")


def _short(name: str, limit: int = 26) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _lines(table: pd.DataFrame, colours: dict[str, str], title: str, ylabel: str, logarithmic: bool) -> Figure:
    """A line a method over layers; table [layer, method]."""
    fig, ax = _canvas(3.2, max(3.2, 0.24 * table.shape[1] + 0.6))
    markers = method_markers(colours)
    every = max(1, len(table) // 6)
    for i, method in enumerate(table.columns):
        line = {"color": colours[method], "marker": markers[method], "markevery": (i % every, every), "mec": "white"}
        ax.plot(table.index, table[method], lw=1.5, ms=6, **line)
    if logarithmic and (table > 0).to_numpy().all():
        _log_ticks(ax, ax.yaxis, table.to_numpy().ravel())
    ax.margins(x=0.02)
    ends = [table[method].dropna() for method in table.columns]
    _label_right(ax, [Label(end.index[-1], end.iloc[-1], _short(end.name), end.name) for end in ends], colours)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="decoder layer", ylabel=ylabel)
    ax.set_title(title)
    return fig


def _label_right(ax: Axes, labels: list[Label], colours: dict[str, str], leaders: bool = False) -> None:
    """Names in a column at the right, near the height of their points and never on each other."""
    ax.autoscale_view()
    ax.autoscale(False)
    height = ax.figure.get_size_inches()[1]
    to_axes = ax.transData + ax.transAxes.inverted()
    wanted = [to_axes.transform((label.x, label.y))[1] for label in labels]
    markers = method_markers(colours)
    for label, y in zip(labels, spread(wanted, 0.22 / height, 0.02, 0.98), strict=True):
        at = {"transform": ax.transAxes, "clip_on": False}
        ax.plot(1.08, y, markers[label.method], ms=7, color=colours[label.method], mec="white", **at)
        weight = "bold" if label.bold else "normal"
        ax.text(1.12, y, label.text, va="center", fontsize=9, weight=weight, transform=ax.transAxes)
        if leaders:
            tie = {"arrowstyle": "-", "color": RULE, "lw": 0.7, "shrinkA": 5, "shrinkB": 4}
            ax.annotate("", (1.08, y), (label.x, label.y), "axes fraction", "data", arrowprops=tie, zorder=1)


def _log_ticks(ax: Axes, axis: Axis, values: Iterable[float], ticks: Sequence[float] = ()) -> None:
    """A logarithmic axis with plain numbers, at `ticks` where two of them are in range."""
    values = np.asarray(list(values), dtype=float)
    values = values[np.isfinite(values)]
    pad = math.exp(0.03 + 0.05 * math.log(values.max() / values.min()))
    low, high = values.min() / pad, values.max() * pad
    (ax.set_xscale if axis is ax.xaxis else ax.set_yscale)("log")
    (ax.set_xlim if axis is ax.xaxis else ax.set_ylim)(low, high)
    few = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
    many = LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,))
    inside = [tick for tick in ticks if low <= tick <= high]
    if len(inside) < 2:
        inside = [tick for tick in (few if high / low < 6 else many).tick_values(low, high) if low <= tick <= high]
    axis.set_ticks(inside)
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


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


def _plain(ppl: float) -> str:
    return f"{ppl:.2f}" if ppl < 1e4 else f"{ppl:.2g}"


def _percent(value: float) -> str:
    """Percent in at most four characters."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _pair_cell(value: float, shown: bool, dark: bool) -> tuple[str, str]:
    """Text in thousandths of a nat, and its colour."""
    if not math.isfinite(value):
        return "", INK
    return signed(1000 * value, 0), "white" if dark else INK if shown else "#737b84"


def _write_cells(ax: Axes, cells: list[list[tuple[str, str]]], size: float) -> None:
    for i, row in enumerate(cells):
        for j, (text, colour) in enumerate(row):
            ax.text(j, i, text, ha="center", va="center", fontsize=size, color=colour)


def _cell_ticks(ax: Axes, rows: list[str], columns: list[str], rotation: int) -> None:
    """Names at the left and, turned, below; white lines between the cells."""
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(range(len(columns)), columns, rotation=rotation, ha="right", rotation_mode="anchor")
    ax.grid(visible=False)
    ax.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=1.5)
    ax.tick_params(length=0, which="both")
    ax.spines[:].set_visible(False)
