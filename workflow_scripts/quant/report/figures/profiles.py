"""Where damage sits: the rise of the NLL by how often a token stands in the text, and by its place in the sequence."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from quant.report.figures.style import (
    INK,
    Label,
    canvas,
    label_right,
    message,
    method_markers,
    short,
    styled,
    title_of,
)

WORDS = {
    "frequency": ("Damage by frequency of the token, 95 % interval", "times that the token stands in this text"),
    "position": ("Damage by place in the sequence, 95 % interval", "tokens before it in its sequence"),
}
WILD = 6  # the axis ends at so many times the median,
DEEP = 0.25  # and below, where only intervals reach, at this share of that
APART = 0.5  # of an octave, over which the methods' points are spread


@styled
def profile(rows: pd.DataFrame, by: str, colours: dict[str, str]) -> Figure:
    """Each method's rise of the NLL by octave; rows of profiles.csv of one model, data set and `by`."""
    title, axis = WORDS[by]
    rows = rows[np.isfinite(rows.delta_nll)]
    if rows.empty:
        return message(title, "No method with a finite NLL.")
    octaves = sorted(rows["first"].unique())
    order = rows.groupby("method", sort=False).delta_nll.mean().sort_values(kind="stable").index.tolist()
    shifts = dict(zip(order, np.linspace(-APART / 2, APART / 2, len(order)) if len(order) > 1 else [0.0], strict=True))
    top = max(WILD * rows.delta_nll.median(), 1.05 * rows.delta_nll.min(), 0.05)
    drawn = rows.assign(
        place=rows["first"].map(octaves.index) + rows.method.map(shifts), height=rows.delta_nll.clip(upper=top)
    )
    fig, ax = canvas(max(2.7, 0.34 * len(octaves)), max(2.6, 0.24 * len(order)))
    markers = method_markers(colours)
    sns.lineplot(drawn, x="place", y="height", hue="method", style="method", hue_order=order, style_order=order,
                 palette=colours, markers=[markers[name] for name in order], dashes=False, lw=0.9, ms=4.5,
                 mew=0.4, errorbar=None, legend=False, ax=ax)  # fmt: skip
    bottom = min(1.2 * drawn.delta_nll.min(), -DEEP * top)
    ends = (drawn[end].fillna(drawn.delta_nll) for end in ("delta_nll_low", "delta_nll_high"))
    low, high = (end.clip(bottom, top) for end in ends)
    ax.vlines(drawn.place, low, high, colors=drawn.method.map(colours), lw=1.1, zorder=1.9)
    ax.axhline(0, color=INK, lw=1.2, ls=(0, (4, 2)))
    ax.set_xticks(range(len(octaves)), [f"{first:,}" for first in octaves], fontsize=8.5)
    ax.set(xlim=(-0.6, len(octaves) - 0.4), xlabel=f"{axis} (from … up)", ylabel="rise of the NLL, nats per token")
    ax.grid(axis="x", visible=False)
    last = drawn[drawn["first"] == octaves[-1]].set_index("method")
    at = drawn.sort_values("first", kind="stable").groupby("method", sort=False).tail(1).set_index("method")
    known = last if set(order) <= set(last.index) else at
    labels = [Label(known.place[name], known.height[name], short(name), name) for name in reversed(order)]
    label_right(ax, labels, colours, leaders=True)
    title_of(ax, title, "0: the original, on the same tokens")
    return fig
