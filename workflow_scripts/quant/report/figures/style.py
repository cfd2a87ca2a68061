"""How every figure looks: colours, markers, names beside the axes, cells, and the ways to save one.

Every figure is drawn on white, under 6 inches wide, so that it stays readable on a telephone. A method keeps its
colour and marker in all of them; `colours` is always `method_colours` of every configured method.
"""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from quant.files.artifacts import whole, write_text

# Okabe and Ito's colours without yellow and black, then those of Tol's muted scheme that stay apart from them
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
    "#882255", "#332288", "#999933", "#44AA99", "#661100", "#777777",
)  # fmt: skip
MARKERS = "osD^v<>phdX"
INK, FAINT, RULE = "#1b1f24", "#8a929b", "#d9dde2"
PRAQ_BETTER, AWQ_BETTER = "#0072B2", "#D55E00"
STYLE: dict[Any, Any] = {
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
SOFT = "#5a626b"
RING: dict[str, Any] = {"mfc": "none", "mec": INK, "mew": 1.6}


class Label(NamedTuple):
    """A name beside the axes, tied to a point of the data."""

    x: float
    y: float
    text: str
    method: str
    bold: bool = False
    ringed: bool = False


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


def save_bitmap(fig: Figure, path: str | Path, provenance: dict[str, Any]) -> None:
    """Writes the figure as PNG or WebP by its suffix, the same for the same data; a PNG with its provenance as JSON."""
    buffer, kind = io.BytesIO(), Path(path).suffix[1:]
    options: dict[str, Any] = {"dpi": 140, "pil_kwargs": {"quality": 80, "method": 4}}
    if kind == "png":
        description = json.dumps(provenance, sort_keys=True)
        options = {"dpi": 160, "metadata": {"Software": None, "Description": description}}
    with matplotlib.rc_context(STYLE):
        fig.savefig(buffer, format=kind, bbox_inches="tight", pad_inches=0.08, **options)
    with whole(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Axes of that size in inches; what stands outside them is kept when the figure is saved."""
    fig = Figure(figsize=(width, height))
    return fig, fig.add_axes((0, 0, 1, 1))


def message(title: str, text: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    fig, ax = canvas(5.2, 1.0)
    ax.axis("off")
    ax.set_title(title)
    ax.text(0, 0.5, text, transform=ax.transAxes)
    return fig


def title_of(ax: Axes, title: str, subtitle: str) -> None:
    """A title and under it a smaller line or two."""
    ax.set_title(title, x=0, pad=8 + 12 * (1 + subtitle.count("\n")))
    ax.annotate(subtitle, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=8.5, color="#5a626b")


def short(name: str, limit: int = 26) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def label_right(ax: Axes, labels: list[Label], colours: dict[str, str], leaders: bool = False) -> None:
    """Names in a column at the right, near the height of their points and never on each other."""
    ax.autoscale_view()
    ax.autoscale(False)
    figure = ax.get_figure(root=True)
    assert figure is not None
    height = figure.get_size_inches()[1]
    to_axes = ax.transData + ax.transAxes.inverted()
    wanted = [to_axes.transform((label.x, label.y))[1] for label in labels]
    markers = method_markers(colours)
    for label, y in zip(labels, spread(wanted, 0.22 / height, 0.02, 0.98), strict=True):
        at: dict[str, Any] = {"transform": ax.transAxes, "clip_on": False}
        ax.plot(1.08, y, markers[label.method], ms=7, color=colours[label.method], mec="white", **at)
        if label.ringed:
            ax.plot(1.08, y, "o", ms=11, **RING, **at)
        weight = "bold" if label.bold else "normal"
        ax.text(1.12, y, label.text, va="center", fontsize=9, weight=weight, transform=ax.transAxes)
        if leaders:
            tie = {"arrowstyle": "-", "color": RULE, "lw": 0.7, "shrinkA": 5, "shrinkB": 4}
            ax.annotate("", (1.08, y), (label.x, label.y), "axes fraction", "data", arrowprops=tie, zorder=1)


def heat_map(
    table: pd.DataFrame,
    cells: list[list[tuple[str, str]]],
    cell: tuple[float, float],
    size: float,
    rotation: int,
    **colours: Any,
) -> tuple[Figure, Axes]:
    """A matrix of shades with a text and its colour in each cell of that width and height in inches; NaN: no shade."""
    fig, ax = canvas(cell[0] * table.shape[1], cell[1] * table.shape[0])
    texts = pd.DataFrame([[text for text, _ in row] for row in cells], table.index, table.columns)
    sns.heatmap(table, ax=ax, annot=texts, fmt="", annot_kws={"fontsize": size}, cbar=False, linewidths=1.5,
                linecolor="white", xticklabels=True, yticklabels=True, **colours)  # fmt: skip
    inks = [ink for row, shades in zip(cells, table.to_numpy(), strict=True)
            for (_, ink), shade in zip(row, shades, strict=True) if not np.isnan(shade)]  # fmt: skip
    for text, ink in zip(ax.texts, inks, strict=True):
        text.set_color(ink)
    ax.set_xticks(ax.get_xticks(), table.columns, rotation=rotation, ha="right", rotation_mode="anchor")
    ax.set_yticks(ax.get_yticks(), table.index, rotation=0)
    ax.set(xlabel="", ylabel="")
    ax.grid(visible=False)
    ax.tick_params(length=0, which="both")
    return fig, ax
