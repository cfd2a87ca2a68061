"""Scores on tasks."""

import pandas as pd
from matplotlib.figure import Figure

from quant.comparison.numbers import interval, signed
from quant.comparison.tasks import found
from quant.comparison.verdicts import ORIGINAL
from quant.report.figures.style import INK, message, method_markers, short, styled


@styled
def tasks(rows: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Each method's score minus the original's with its interval, a panel a task; rows of one model of tasks.csv."""
    quantised = rows[rows.method != ORIGINAL]
    names, markers = list(dict.fromkeys(rows.task)), method_markers(colours)
    if quantised.empty:
        return message("Tasks", "No quantised method has answered.")
    methods = list(dict.fromkeys(quantised.method))
    fig = Figure(figsize=(3.4, 0.55 + len(names) * (0.28 * len(methods) + 0.75)))
    panels = fig.subplots(len(names), 1, squeeze=False, gridspec_kw={"hspace": 0.55})[:, 0]
    reach = 100 * max(abs(quantised.delta_low).max(), abs(quantised.delta_high).max(), 0.01) * 1.06
    for ax, name in zip(panels, names, strict=True):
        original = rows[(rows.task == name) & (rows.method == ORIGINAL)].iloc[0]
        of_task = quantised[quantised.task == name].set_index("method").loc[methods]
        for y, (method, row) in zip(range(len(methods) - 1, -1, -1), of_task.iterrows(), strict=True):
            ax.hlines(y, 100 * row.delta_low, 100 * row.delta_high, color=colours[method], lw=2.4)
            shown = found(row).by == "answers"
            fill = colours[method] if shown else "white"
            ax.plot(100 * row.delta, y, markers[method], ms=7, color=colours[method], mfc=fill, mec=colours[method])
            text = f"{signed(100 * row.delta, 1)}  {interval(100 * row.delta_low, 100 * row.delta_high, 1)}"
            ax.text(1.03, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=9)
        ax.axvline(0, color=INK, lw=1.2)
        ax.set_yticks(range(len(methods)), [short(method) for method in reversed(methods)])
        ax.set(xlim=(-reach, reach), ylim=(-0.6, len(methods) - 0.4))
        ax.grid(axis="y", visible=False)
        ax.set_title(
            f"{short(name)}: the original {100 * original.score:.1f} %, chance {100 * original.chance:.0f} %",
            fontsize=9.5,
        )
    panels[-1].set_xlabel("score minus the original's, percentage points")
    return fig
