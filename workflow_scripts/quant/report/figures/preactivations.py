"""Pre-activations of every layer: channel tables in, matplotlib figures out."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from quant.models.structure.names import linear_kind
from quant.report.figures.axes import asinh_axis, label_panel, log_axis, positive
from quant.report.figures.style import INK, PALETTE, SOFT, styled

DEAD_SHADE, RISK_SHADE = "#eceff1", "#fdebd0"


def linear_colours(linears: Sequence[str]) -> dict[str, str]:
    """A colour per linear of a layer, in their order."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(linears)}


@styled
def layer_preactivations(
    layer: int, channels: pd.DataFrame, shown: pd.DataFrame, samples: list[np.ndarray], thresholds: dict[str, float]
) -> Figure:
    """The six panels of one layer: means, stds, mean against std, weights, upper bounds, example critical channels."""
    fig = Figure(figsize=(6.6, 8.4))
    panels = fig.subplots(3, 2, gridspec_kw={"hspace": 0.5, "wspace": 0.3}).ravel()
    colours = linear_colours(channels.linear.unique())
    dead = thresholds["dead"]
    _distribution(panels[0], channels, "z_mean", colours)
    label_panel(panels[0], "Mean of each channel", "E z", "share of its channels, %")
    _distribution(panels[1], channels, "z_std", colours, logarithmic=True)
    label_panel(panels[1], "Standard deviation", "std z", "share of its channels, %")
    _risk_map(panels[2], channels, colours, thresholds)
    _weights(panels[3], channels, colours, thresholds)
    _distribution(panels[4], channels, "upper_bound", colours)
    label_panel(panels[4], "Upper bound", f"E z + {thresholds['sigmas']:g} std z", "share of its channels, %")
    for panel in (panels[0], panels[4]):
        panel.axvline(dead, color=INK, lw=1, ls=(0, (4, 2)))
    _ridges(panels[5], shown, samples, colours, dead)
    handles = [
        matplotlib.lines.Line2D([], [], color=colour, lw=3, label=_legend_name(name, channels))
        for name, colour in colours.items()
    ]
    fig.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.915), ncols=4, frameon=False, fontsize=8.5,
               columnspacing=1.2, handlelength=1.2)  # fmt: skip
    title = f"Layer {layer}: pre-activations z = Wx + b, by channel (ringed: critical)"
    fig.text(0.08, 0.985, title, fontsize=11, weight="bold", va="bottom")
    return fig


def _legend_name(linear: str, channels: pd.DataFrame) -> str:
    read = channels.activated[channels.linear == linear].any()
    return linear_kind(linear) + (" (activation follows)" if read else "")


def _distribution(
    ax: Axes, channels: pd.DataFrame, column: str, colours: dict[str, str], logarithmic: bool = False
) -> None:
    """A linear's channels in 40 bins of equal width on the axis, in percent of them; an outline a linear."""
    values = channels[column].to_numpy(float)
    values = positive(values) if logarithmic else values
    to, back = (np.log, np.exp) if logarithmic else (np.arcsinh, np.sinh)
    low, high = to(values.min()), to(values.max())
    edges = back(np.linspace(low, high + 1e-9 * (1 + abs(high)), 41))
    table = pd.DataFrame({"value": values, "linear": channels.linear.to_numpy()})
    sns.histplot(table, x="value", hue="linear", palette=colours, bins=edges, stat="percent", common_norm=False,
                 element="step", fill=False, lw=1.3, legend=False, ax=ax)  # fmt: skip
    (log_axis if logarithmic else asinh_axis)(ax.xaxis, values)
    ax.set_ylim(bottom=0)


def _scatter(ax: Axes, channels: pd.DataFrame, y: np.ndarray, colours: dict[str, str]) -> None:
    """Points of all channels, critical ones ringed on top."""
    order = np.random.default_rng(0).permutation(len(channels))  # no linear hides another
    point_colours = channels.linear.map(colours).to_numpy()[order]
    x = channels.z_mean.to_numpy(float)
    ax.scatter(x[order], y[order], s=5, c=point_colours, lw=0, alpha=0.75)
    critical = channels.critical.to_numpy()
    ax.scatter(x[critical], y[critical], s=16, facecolors="none", edgecolors=INK, lw=0.7)


def _risk_map(ax: Axes, channels: pd.DataFrame, colours: dict[str, str], thresholds: dict[str, float]) -> None:
    std = positive(channels.z_std.to_numpy(float))
    dead, sigmas = thresholds["dead"], thresholds["sigmas"]
    _scatter(ax, channels, std, colours)
    asinh_axis(ax.xaxis, np.append(channels.z_mean.to_numpy(float), 1.5 * dead))
    log_axis(ax.yaxis, std)
    left, (bottom, top) = ax.get_xlim()[0], ax.get_ylim()
    # on the line E z + sigmas·std z is the threshold
    x = np.sinh(np.linspace(np.arcsinh(left), np.arcsinh(dead), 60))
    line = np.clip((dead - x) / sigmas, bottom, top)
    ax.fill_between(x, line, top, color=RISK_SHADE, lw=0, zorder=0)
    ax.fill_between(x, bottom, line, color=DEAD_SHADE, lw=0, zorder=0)
    ax.axvline(dead, color=INK, lw=1, ls=(0, (4, 2)))
    small: dict[str, Any] = {"transform": ax.transAxes, "fontsize": 8, "color": SOFT}
    ax.text(0.02, 0.97, "risky", va="top", **small)
    ax.text(0.02, 0.03, "dead", va="bottom", **small)
    label_panel(ax, "Std against mean", "E z", "std z")


def _weights(ax: Axes, channels: pd.DataFrame, colours: dict[str, str], thresholds: dict[str, float]) -> None:
    level = channels.groupby("linear").weight_abs.transform(lambda rows: rows.quantile(thresholds["high_weight"]))
    relative = positive((channels.weight_abs / level.where(level > 0, 1)).to_numpy(float))
    _scatter(ax, channels, relative, colours)
    asinh_axis(ax.xaxis, np.append(channels.z_mean.to_numpy(float), 1.5 * thresholds["dead"]))
    ax.set_yscale("log")
    low, high = relative.min() / 1.1, max(relative.max(), 1.2) * 1.1
    ax.set_ylim(low, high)
    ticks = [tick for tick in (0.01, 0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10) if low <= tick <= high]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.axhline(1, color=INK, lw=1, ls=(0, (4, 2)))
    ax.axvline(thresholds["dead"], color=INK, lw=1, ls=(0, (4, 2)))
    share = f"mean |W| over its {thresholds['high_weight']:g} quantile"
    label_panel(ax, "Weights against mean", "E z", share)


def _ridges(ax: Axes, shown: pd.DataFrame, samples: list[np.ndarray], colours: dict[str, str], dead: float) -> None:
    """Each channel's sampled z as a filled outline, one above the other; its range over all tokens as a line."""
    label_panel(ax, "Critical channels, examples", "z of single tokens", "")
    ax.set_yticks([])
    ax.grid(axis="y", visible=False)
    if shown.empty:
        ax.text(0.5, 0.5, "no critical channel here", transform=ax.transAxes, ha="center", fontsize=9, color=SOFT)
        ax.set_xticks([])
        ax.grid(visible=False)
        return
    values = np.concatenate([*samples, shown.z_min, shown.z_max, [dead]])
    edges = np.sinh(np.linspace(np.arcsinh(values.min()), np.arcsinh(values.max()) + 1e-9, 61))
    for i, (row, sample) in enumerate(zip(shown.itertuples(), samples, strict=True)):
        base = len(shown) - 1 - i
        counts, _ = np.histogram(sample, edges)
        ax.hlines(base, row.z_min, row.z_max, color=colours[row.linear], lw=1)
        ax.stairs(base + 0.72 * counts / max(counts.max(), 1), edges, baseline=base, fill=True,
                  color=colours[row.linear], alpha=0.75)  # fmt: skip
        ax.text(0.99, base + 0.66, f"{linear_kind(row.linear)} {row.channel}", ha="right", va="center", fontsize=8,
                transform=ax.get_yaxis_transform())  # fmt: skip
    ax.axvline(dead, color=INK, lw=1, ls=(0, (4, 2)))
    asinh_axis(ax.xaxis, values)
    ax.set_ylim(-0.15, len(shown) + 0.05)


@styled
def classes_by_layer(table: pd.DataFrame) -> Figure:
    """Shares of dead, risky and critical channels by layer, a line for each linear; rows of one model."""
    names = table.assign(name=table.linear.map(linear_kind))
    colours = linear_colours(names.name.unique())
    fig = Figure(figsize=(5.8, 6.4))
    panels = fig.subplots(3, 1, sharex=True, gridspec_kw={"hspace": 0.28})
    for ax, column in zip(panels, ("dead", "risky", "critical"), strict=True):
        for name, rows in names.groupby("name", sort=False):
            read = (rows.activated > 0).any()
            label = name + (" (activation follows)" if read else "")
            sns.lineplot(x=rows.layer, y=100 * rows[column], color=colours[name], lw=3 if read else 1.4,
                         zorder=3 if read else 2, label=label, legend=False, errorbar=None, ax=ax)  # fmt: skip
        ax.set_title(f"{column}, % of the linear's channels", x=0, fontsize=9.5, pad=4)
        ax.set(xlabel="", ylabel="")
        ax.set_ylim(bottom=0)
        ax.margins(x=0.02)
    panels[-1].xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    panels[-1].set_xlabel("decoder layer")
    fig.legend(*panels[0].get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 0.915), ncols=3,
               frameon=False, fontsize=8.5)  # fmt: skip
    return fig
