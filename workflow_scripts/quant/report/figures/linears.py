"""Where the error arises: by layer and by kind of linear; and the exponent that the search chose."""

import math

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from quant.models.structure.names import linear_kind
from quant.report.figures.axes import log_ticks
from quant.report.figures.style import (
    INK,
    Label,
    canvas,
    heat_map,
    label_right,
    message,
    method_markers,
    short,
    styled,
)


@styled
def error_by_layer(layers: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Median relative error of each layer's linears, a line a method; rows of one model."""
    title = "Relative error by layer (median of its linears)"
    return _lines(layers, "relative_error", "median", colours, title, "relative output error (log scale)")


@styled
def alpha_by_layer(layers: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Mean α of each layer's linears, a line a method that searches; rows of one model."""
    searched = layers.dropna(subset=["alpha"])
    if searched.empty:
        return message("Scale exponent α by layer", "No method here searches a scale.")
    title = "Scale exponent α by layer (mean of its linears)"
    return _lines(searched, "alpha", "mean", colours, title, "α (0: no scaling, 1: full)")


@styled
def error_by_kind(layers: pd.DataFrame) -> Figure:
    """Median relative error in percent, method against kind of linear; rows of one model."""
    table = layers.assign(linear=layers.linear.map(linear_kind)).pivot_table(
        index="method", columns="linear", values="relative_error", aggfunc="median", sort=False
    )
    table = 100 * table.loc[table.mean(axis=1).sort_values(kind="stable").index]
    values = table.to_numpy()
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (positive.min() / 1.3, positive.max()) if positive.size else (0.1, 1)
    # the largest value takes 0.6 of the colour scale: dark ink stays readable on it
    norm = LogNorm(low, low * (high / low) ** (1 / 0.6))
    shades = pd.DataFrame(np.fmax(values, low), [short(name) for name in table.index], table.columns)
    cells = [[(_percent(value), INK) for value in row] for row in values]
    fig, ax = heat_map(shades, cells, (0.5, 0.3), 9, 35, cmap="Blues", norm=norm)
    ax.set_title("Relative error, %, by kind of linear (median)", x=0, pad=8)
    return fig


def _lines(
    layers: pd.DataFrame, value: str, estimator: str, colours: dict[str, str], title: str, ylabel: str
) -> Figure:
    """A line a method over layers, through the estimate over each layer's linears; a log scale if ylabel says so."""
    table = layers.pivot_table(index="layer", columns="method", values=value, aggfunc=estimator)
    methods, markers = list(table.columns), method_markers(colours)
    fig, ax = canvas(3.2, max(3.2, 0.24 * len(methods) + 0.6))
    sns.lineplot(layers, x="layer", y=value, hue="method", hue_order=methods, style="method", style_order=methods,
                 estimator=estimator, errorbar=None, palette=colours, markers=markers, dashes=False, legend=False,
                 lw=1.5, ms=6, ax=ax)  # fmt: skip
    every = max(1, len(table) // 6)
    for i, line in enumerate(ax.lines):
        line.set_markevery((i % every, every))
    if "log scale" in ylabel and (table > 0).to_numpy().all():
        log_ticks(ax, ax.yaxis, table.to_numpy().ravel())
    ax.margins(x=0.02)
    ends = [table[method].dropna() for method in methods]
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
