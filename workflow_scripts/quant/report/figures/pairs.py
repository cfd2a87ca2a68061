"""The matrix of every two methods."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quant.comparison.measures import MEASURES
from quant.comparison.numbers import LEVEL, signed
from quant.report.figures.style import INK, heat_map, message, short, styled, title_of


@styled
def pairs(comparisons: pd.DataFrame, order: Sequence[str], by: str = "nll") -> Figure:
    """Matrix of differences by a measure, row minus column; rows of one model and data set, methods as in `order`."""
    title = "Difference between every two methods" + ("" if by == "nll" else f", {MEASURES[by].words}")
    if comparisons.empty:
        return message(title, "There is only one method, so there is nothing to compare.")
    n = len(order)
    value, shown = pair_tables(comparisons, order, by)
    # square root: differences of 0.01 and of 1 nat both keep a visible shade
    shade = np.where(shown, np.sign(value) * np.sqrt(np.abs(value)), 0)
    limit = max(np.nanmax(np.abs(shade)), 1e-6) * 1.35
    dark = np.abs(shade) > 0.62 * limit
    cells = [
        [_pair_cell(value[i, j], bool(shown[i, j]), bool(dark[i, j])) if i != j else ("", INK) for j in range(n)]
        for i in range(n)
    ]
    names = [short(method) for method in order]
    shades = pd.DataFrame(np.where(np.eye(n), np.nan, shade), names, names)
    fig, ax = heat_map(shades, cells, (0.4, 0.33), 8.5, 45, cmap="RdBu_r", vmin=-limit, vmax=limit)
    note = "thousandths of a nat, row minus column; blue: the row is better;\nno colour: no difference shown"
    title_of(ax, title, note)
    return fig


def pair_tables(comparisons: pd.DataFrame, order: Sequence[str], by: str = "nll") -> tuple[np.ndarray, np.ndarray]:
    """[n, n] differences, row minus column (NaN: not compared), and where the corrected p shows one."""
    place, measure = {method: i for i, method in enumerate(order)}, MEASURES[by]
    value = np.full((len(order), len(order)), np.nan)
    shown = np.zeros(value.shape, dtype=bool)
    for row in comparisons.itertuples():
        i, j = place[row.method_a], place[row.method_b]
        found = getattr(row, measure.difference)
        value[i, j], value[j, i] = found, -found
        shown[i, j] = shown[j, i] = getattr(row, f"p_holm{measure.suffix}") <= LEVEL
    return value, shown


def _pair_cell(value: float, shown: bool, dark: bool) -> tuple[str, str]:
    """Text in thousandths of a nat, and its colour."""
    if not math.isfinite(value):
        return "", INK
    return signed(1000 * value, 0), "white" if dark else INK if shown else "#737b84"
