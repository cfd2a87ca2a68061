"""What tasks show: right answers, and how likely right answers are made."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quant.comparison.numbers import LEVEL
from quant.comparison.verdicts import ORIGINAL
from quant.report.figures.style import INK, message, method_markers, short, styled

# of a row of tasks.csv: the difference to the original, its ends and its p; in which units, and which way is better
MEASURES = (
    (("delta", "delta_low", "delta_high"), "p_holm", 100.0, "right answers, points"),
    (("delta_nll", "delta_nll_low", "delta_nll_high"), "p_nll_holm", -1.0, "likelihood of right ones, nats"),
)


@styled
def tasks(rows: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Each method minus the original, right answers beside the likelihood of right ones, in rows of panels by task;
    rows of one model of tasks.csv. What is better is to the right."""
    quantised = rows[rows.method != ORIGINAL]
    names, markers = list(dict.fromkeys(rows.task)), method_markers(colours)
    if quantised.empty:
        return message("Tasks", "No quantised method has answered.")
    methods = list(dict.fromkeys(quantised.method))
    fig = Figure(figsize=(4.4, 0.55 + len(names) * (0.28 * len(methods) + 0.75)))
    grid = fig.subplots(len(names), 2, squeeze=False, sharex="col", gridspec_kw={"hspace": 0.55, "wspace": 0.12})
    for panels, name in zip(grid, names, strict=True):
        original = rows[(rows.task == name) & (rows.method == ORIGINAL)].iloc[0]
        of_task = quantised[quantised.task == name].set_index("method").loc[methods]
        for ax, (columns, p, unit, _) in zip(panels, MEASURES, strict=True):
            for y, (method, row) in zip(range(len(methods) - 1, -1, -1), of_task.iterrows(), strict=True):
                shown = row[p] <= LEVEL
                draw(ax, y, [unit * row[column] for column in columns], markers[method], colours[method], shown)
            ax.axvline(0, color=INK, lw=1.2)
            ax.set_yticks(range(len(methods)), [short(method) for method in reversed(methods)])
            ax.set_ylim(-0.6, len(methods) - 0.4)
            ax.tick_params(labelleft=ax is panels[0])
            ax.grid(axis="y", visible=False)
        score, chance = 100 * original.score, 100 * original.chance
        panels[0].set_title(f"{short(name)}: the original {score:.1f} %, chance {chance:.0f} %", fontsize=9.5)
    for i, (columns, _, unit, label) in enumerate(MEASURES):
        reach = abs(unit) * max(0.01 / abs(unit), *(abs(quantised[column]).max() for column in columns)) * 1.06
        grid[-1][i].set(xlim=(-reach, reach))
        grid[-1][i].set_xlabel(label, fontsize=9.5)
    return fig


def draw(ax: Axes, y: float, values: list[Any], marker: str, colour: str, shown: bool) -> None:
    """A difference and its two ends; filled where it is shown."""
    middle, low, high = values
    ax.hlines(y, low, high, color=colour, lw=2.4)
    ax.plot(middle, y, marker, ms=7, color=colour, mfc=colour if shown else "white", mec=colour)
