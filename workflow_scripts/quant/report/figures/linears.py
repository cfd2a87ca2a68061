"""Where the error arises: by layer and by kind of linear; and the exponent that the search chose."""

import math

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from quant.report.figures.axes import log_ticks
from quant.report.figures.style import (
    INK,
    Label,
    canvas,
    cell_ticks,
    label_right,
    message,
    method_markers,
    short,
    styled,
    write_cells,
)


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
        return message("Scale exponent α by layer", "No method here searches a scale.")
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
    fig, ax = canvas(0.5 * n_columns, 0.3 * n_rows)
    values = table.to_numpy()
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (positive.min() / 1.3, positive.max()) if positive.size else (0.1, 1)
    # the largest value takes 0.6 of the colour scale: dark ink stays readable on it
    norm = LogNorm(low, low * (high / low) ** (1 / 0.6))
    ax.imshow(np.maximum(values, low), cmap="Blues", norm=norm, aspect="auto")
    write_cells(ax, [[(_percent(v), INK) for v in row] for row in values], 9)
    cell_ticks(ax, [short(method) for method in table.index], list(table.columns), rotation=35)
    ax.set_title("Relative error, %, by kind of linear (median)", x=0, pad=8)
    return fig


def _lines(table: pd.DataFrame, colours: dict[str, str], title: str, ylabel: str, logarithmic: bool) -> Figure:
    """A line a method over layers; table [layer, method]."""
    fig, ax = canvas(3.2, max(3.2, 0.24 * table.shape[1] + 0.6))
    markers = method_markers(colours)
    every = max(1, len(table) // 6)
    for i, method in enumerate(table.columns):
        line = {"color": colours[method], "marker": markers[method], "markevery": (i % every, every), "mec": "white"}
        ax.plot(table.index, table[method], lw=1.5, ms=6, **line)
    if logarithmic and (table > 0).to_numpy().all():
        log_ticks(ax, ax.yaxis, table.to_numpy().ravel())
    ax.margins(x=0.02)
    ends = [table[method].dropna() for method in table.columns]
    label_right(ax, [Label(end.index[-1], end.iloc[-1], short(end.name), end.name) for end in ends], colours)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="decoder layer", ylabel=ylabel)
    ax.set_title(title)
    return fig


def _percent(value: float) -> str:
    """Percent in at most four characters."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
