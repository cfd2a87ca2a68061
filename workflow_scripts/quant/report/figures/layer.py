"""One layer in detail: AWQ's and PRAQ's importance of its channels."""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quant.analysis.preactivations import class_words
from quant.comparison.numbers import number
from quant.models.structure.names import linear_kind
from quant.report.figures.axes import log_axis, plain, positive
from quant.report.figures.style import AWQ_BETTER, INK, PALETTE, SOFT, styled


@styled
def correlation(layer: int, outputs: pd.DataFrame, inputs: pd.DataFrame, agreement: pd.DataFrame) -> Figure:
    """AWQ's against PRAQ's importance, a panel for each linear's output channels and each one's input channels; those
    whose saliences are the same by definition are left out."""
    wanted = agreement[(agreement.side == "output") | (agreement.spearman < 1)]
    rows = list(wanted.sort_values("side", ascending=False, kind="stable").itertuples())
    n_lines = -(-len(rows) // 3)
    fig = Figure(figsize=(6.6, 2.35 * n_lines + 0.4))
    panels = fig.subplots(n_lines, 3, squeeze=False, gridspec_kw={"hspace": 0.75, "wspace": 0.42}).ravel()
    for ax, row in zip(panels, rows, strict=False):
        kind = "score" if row.side == "output" else "salience"
        table = outputs if row.side == "output" else inputs
        table = table[table.linear == row.linear]
        awq, praq = (positive(table[f"{kind}_{name}"].to_numpy(float)) for name in ("awq", "praq"))
        ax.scatter(awq, praq, s=5, lw=0, alpha=0.6, color=PALETTE[0] if row.side == "output" else PALETTE[2])
        log_axis(ax.xaxis, awq)
        log_axis(ax.yaxis, praq)
        ax.set_title(f"{linear_kind(row.linear)}, {row.side}s", x=0, fontsize=9.5, pad=15)
        rho = f"ρ {number(row.spearman, 2)} [{number(row.low, 2)}, {number(row.high, 2)}]"
        ax.annotate(rho, (0, 1), (0, 4), "axes fraction", "offset points", fontsize=8, color=SOFT)
        ax.set_xlabel(f"AWQ {kind}", fontsize=8.5, labelpad=2)
        ax.set_ylabel(f"PRAQ {kind}", fontsize=8.5, labelpad=2)
        ax.tick_params(labelsize=8)
    for ax in panels[len(rows) :]:
        ax.set_visible(False)
    title = f"Layer {layer}: importance of single channels, AWQ against PRAQ"
    panels[0].annotate(title, (0, 1), (-32, 36), "axes fraction", "offset points", fontsize=11, weight="bold")
    return fig


@styled
def negative_channels(
    layer: int,
    chosen: dict[str, pd.DataFrame],
    samples: dict[str, list[np.ndarray]],
    thresholds: dict[str, float],
) -> Figure:
    """Distributions of single channels, a column for each entry of `chosen`, with mean, upper bound and threshold."""
    n_rows = max(map(len, chosen.values()))
    fig = Figure(figsize=(6.6, 1.3 * n_rows + 0.7))
    panels = fig.subplots(n_rows, len(chosen), squeeze=False, gridspec_kw={"hspace": 1.0, "wspace": 0.1})
    for j, (name, table) in enumerate(chosen.items()):
        for i in range(n_rows):
            ax = panels[i, j]
            if i >= len(table):
                ax.set_visible(False)
                continue
            row = next(table.iloc[[i]].itertuples())
            _single(ax, row, samples[name][i], thresholds["dead"])
        panels[0, j].annotate(name, (0, 1), (0, 26), "axes fraction", "offset points", fontsize=10, weight="bold")
    handles = [
        matplotlib.lines.Line2D([], [], color=AWQ_BETTER, lw=1.6, label="E z"),
        matplotlib.lines.Line2D(
            [], [], color=AWQ_BETTER, lw=1.6, ls=":", label=f"E z + {thresholds['sigmas']:g} std z"
        ),
        matplotlib.lines.Line2D(
            [], [], color=INK, lw=1, ls=(0, (4, 2)), label=f"threshold {plain(thresholds['dead'])}"
        ),
    ]
    panels[-1, 0].legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, -0.45), ncols=3, frameon=False, fontsize=8.5
    )
    title = f"Layer {layer}: z of single tokens in the channels that the activation reads"
    panels[0, 0].annotate(title, (0, 1), (0, 46), "axes fraction", "offset points", fontsize=11, weight="bold")
    return fig


def _single(ax: Axes, row: Any, sample: np.ndarray, dead: float) -> None:
    low, high = min(row.z_min, dead, row.z_mean) - 0.2, max(row.z_max, dead, row.upper_bound) + 0.2
    sns.histplot(x=sample, bins=np.linspace(low, high, 61), color=PALETTE[0], alpha=1, lw=0, ax=ax)
    ax.set(xlabel="", ylabel="")
    ax.axvline(row.z_mean, color=AWQ_BETTER, lw=1.6)
    ax.axvline(row.upper_bound, color=AWQ_BETTER, lw=1.6, ls=":")
    ax.axvline(dead, color=INK, lw=1, ls=(0, (4, 2)))
    ax.set_yticks([])
    ax.grid(axis="y", visible=False)
    ax.tick_params(labelsize=8)
    ax.set_xlim(low, high)
    ax.set_title(f"{linear_kind(row.linear)} {row.channel}: {class_words(row)}", x=0, fontsize=8.5, pad=3)
