"""The check of one layer: whose choice of kept channels errs less."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from quant.comparison.numbers import LEVEL, interval, signed
from quant.models.structure.names import linear_kind
from quant.report.figures.style import AWQ_BETTER, FAINT, INK, PRAQ_BETTER, canvas, styled, title_of


@styled
def check_mse(check: dict[str, Any]) -> Figure:
    """Relative MSE difference of PRAQ's kept channels against AWQ's, a row a linear; one model's check."""
    rows = pd.DataFrame(check["linears"]).iloc[::-1].reset_index(drop=True)
    percent = rows[["difference", "low", "high"]].div(rows.mse_awq.where(rows.mse_awq > 0), axis=0).fillna(0) * 100
    fig, ax = canvas(2.8, 0.36 * len(rows) + 0.4)
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
    side: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "fontsize": 9, "va": "top", "y": 0.99}
    ax.text(-reach, s="◀ PRAQ better", color=PRAQ_BETTER, ha="left", **side)
    ax.text(reach, s="AWQ better ▶", color="#b04e00", ha="right", **side)
    kept = f"{100 * check['keep_ratio']:g} % of the channels in 16 bit, the rest INT4;\n"
    kept += "95 % interval; grey: no difference shown"
    title_of(ax, f"Layer {check['layer']}: which kept channels err less?", kept)
    return fig
