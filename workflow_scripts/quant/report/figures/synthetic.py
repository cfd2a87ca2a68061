"""The "loud silence" benchmark."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from quant.report.figures.axes import plain
from quant.report.figures.style import AWQ_BETTER, FAINT, INK, PRAQ_BETTER, styled

CHOICE_COLOURS = {"awq": AWQ_BETTER, "praq": PRAQ_BETTER, "random": FAINT, "oracle": INK}
CHOICE_NAMES = {"awq": "AWQ", "praq": "PRAQ v3", "random": "random", "oracle": "oracle"}


@styled
def synthetic(summary: dict[str, Any]) -> Figure:
    """Error of each choice over group B's weight scale, and what share of the kept outputs are of group B."""
    scales = summary["scales"]
    x = [row["weight_scale"] for row in scales]
    fig = Figure(figsize=(5.2, 5.6))
    error, kept = fig.subplots(2, 1, sharex=True, height_ratios=[1.6, 1], gridspec_kw={"hspace": 0.22})
    floor = min(
        (row["methods"][name]["mean"] for row in scales for name in CHOICE_NAMES if row["methods"][name]["mean"] > 0),
        default=1e-9,
    )
    for name, label in CHOICE_NAMES.items():
        found = pd.DataFrame([row["methods"][name] for row in scales])
        style = {
            "color": CHOICE_COLOURS[name],
            "label": label,
            "lw": 1.8,
            "marker": "osD^"[list(CHOICE_NAMES).index(name)],
            "ms": 6,
            "mec": "white",
            "ls": (0, (4, 2)) if name in ("oracle", "random") else "-",
        }
        mean = found["mean"].clip(lower=floor)
        span = [(mean - found.low.clip(lower=floor)).clip(lower=0), (found.high - mean).clip(lower=0)]
        error.errorbar(x, mean, yerr=span, capsize=3, **style)
        kept.plot(x, 100 * found.kept_b, **style)
    error.set_yscale("log")
    error.yaxis.set_minor_locator(NullLocator())
    error.yaxis.set_major_formatter(lambda value, _: plain(value))
    error.set_ylabel("error after SiLU (log scale)")
    kept.set(ylabel="kept outputs of group B, %", xlabel="group B's weights, times group A's", ylim=(-4, 104))
    kept.set_xticks(x, [f"{value:g}" for value in x])
    error.set_title("Error of what is not kept, mean and 95 % interval over seeds", x=-0.1, pad=26)
    error.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, frameon=False, fontsize=9, handlelength=2.2)
    return fig
