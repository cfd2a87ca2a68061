"""Figures of the analyses: channel tables and summaries in, matplotlib figures out, in the style of quant.figures."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from quant.analysis.preactivations import class_words
from quant.files.artifacts import whole
from quant.report.figures.study import AWQ_BETTER, FAINT, INK, PALETTE, PRAQ_BETTER, STYLE, linear_kind, styled

DEAD_SHADE, RISK_SHADE = "#eceff1", "#fdebd0"
CHOICE_COLOURS = {"awq": AWQ_BETTER, "praq": PRAQ_BETTER, "random": FAINT, "oracle": INK}
CHOICE_NAMES = {"awq": "AWQ", "praq": "PRAQ v3", "random": "random", "oracle": "oracle"}
SOFT = "#5a626b"


def linear_colours(linears: Sequence[str]) -> dict[str, str]:
    """A colour per linear of a layer, in their order."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(linears)}


def save_bitmap(fig: Figure, path: str | Path, provenance: dict[str, Any]) -> None:
    """Writes the figure as PNG or WebP by its suffix, the same for the same data; a PNG with its provenance as JSON."""
    buffer, kind = io.BytesIO(), Path(path).suffix[1:]
    options: dict[str, Any] = {"dpi": 140, "pil_kwargs": {"quality": 80, "method": 4}}
    if kind == "png":
        description = json.dumps(provenance, sort_keys=True)
        options = {"dpi": 160, "metadata": {"Software": None, "Description": description}}
    with matplotlib.rc_context(STYLE):
        fig.savefig(buffer, format=kind, bbox_inches="tight", pad_inches=0.08, **options)
    with whole(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


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
    _panel(panels[0], "Mean of each channel", "E z", "share of its channels, %")
    _distribution(panels[1], channels, "z_std", colours, logarithmic=True)
    _panel(panels[1], "Standard deviation", "std z", "share of its channels, %")
    _risk_map(panels[2], channels, colours, thresholds)
    _weights(panels[3], channels, colours, thresholds)
    _distribution(panels[4], channels, "upper_bound", colours)
    _panel(panels[4], "Upper bound", f"E z + {thresholds['sigmas']:g} std z", "share of its channels, %")
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


def _panel(ax: Axes, title: str, xlabel: str, ylabel: str) -> None:
    ax.set_title(title, x=0, fontsize=9.5, pad=5)
    ax.set_xlabel(xlabel, fontsize=8.5, labelpad=2)
    ax.set_ylabel(ylabel, fontsize=8.5, labelpad=2)
    ax.tick_params(labelsize=8)


def _asinh_axis(axis: Any, values: np.ndarray) -> None:
    """An axis that is linear near 0 and logarithmic beyond, with few plain ticks."""
    name = axis.axis_name
    ax = axis.axes
    getattr(ax, f"set_{name}scale")("asinh", linear_width=1.0)
    low, high = float(np.min(values)), float(np.max(values))
    pad = 0.04 * (np.arcsinh(high) - np.arcsinh(low) + 0.1)
    getattr(ax, f"set_{name}lim")(np.sinh(np.arcsinh(low) - pad), np.sinh(np.arcsinh(high) + pad))
    reach = max(abs(low), abs(high))
    ticks = (-1000, -100, -10, -1, 0, 1, 10, 100, 1000) if reach > 12 else (-10, -3, -1, 0, 1, 3, 10)
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: _plain(value))


def _log_axis(axis: Any, values: np.ndarray) -> None:
    name, ax = axis.axis_name, axis.axes
    getattr(ax, f"set_{name}scale")("log")
    low, high = float(np.min(values)), float(np.max(values))
    getattr(ax, f"set_{name}lim")(low / 1.15, high * 1.15)
    digits = (1, 1.5, 2, 3, 5, 7) if high / low < 12 else (1, 3) if high / low < 300 else (1,)
    powers = range(-12, 12, 1 if high / low < 1e4 else 2)
    candidates = [digit * 10.0**power for power in powers for digit in digits]
    axis.set_major_locator(FixedLocator([tick for tick in candidates if low / 1.15 <= tick <= high * 1.15]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: _plain(value))


def _plain(value: float) -> str:
    """A number on an axis: as it is, or as a power of ten far from 1."""
    if 0 < value < 1e-3 or value >= 1e5:
        power = int(np.floor(np.log10(value) + 1e-9))
        digit = f"{value / 10.0**power:.2g}"
        raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return ("" if digit == "1" else digit + "·") + "10" + raised
    return f"{value:g}".replace("-", "−")


def _positive(values: np.ndarray) -> np.ndarray:
    """Values raised to where a logarithmic axis can show them: a constant channel has no spread."""
    smallest = values[values > 0].min(initial=np.inf)
    return np.maximum(values, smallest if np.isfinite(smallest) else 1e-6)


def _distribution(
    ax: Axes, channels: pd.DataFrame, column: str, colours: dict[str, str], logarithmic: bool = False
) -> None:
    """A linear's channels in 40 bins of equal width on the axis, in percent of them; an outline a linear."""
    values = channels[column].to_numpy(float)
    values = _positive(values) if logarithmic else values
    to, back = (np.log, np.exp) if logarithmic else (np.arcsinh, np.sinh)
    low, high = to(values.min()), to(values.max())
    edges = back(np.linspace(low, high + 1e-9 * (1 + abs(high)), 41))
    for name, colour in colours.items():
        mine = values[(channels.linear == name).to_numpy()]
        counts, _ = np.histogram(mine, edges)
        ax.stairs(100 * counts / len(mine), edges, color=colour, lw=1.3)
    (_log_axis if logarithmic else _asinh_axis)(ax.xaxis, values)
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
    std = _positive(channels.z_std.to_numpy(float))
    dead, sigmas = thresholds["dead"], thresholds["sigmas"]
    _scatter(ax, channels, std, colours)
    _asinh_axis(ax.xaxis, np.append(channels.z_mean.to_numpy(float), 1.5 * dead))
    _log_axis(ax.yaxis, std)
    left, (bottom, top) = ax.get_xlim()[0], ax.get_ylim()
    # on the line E z + sigmas·std z is the threshold
    x = np.sinh(np.linspace(np.arcsinh(left), np.arcsinh(dead), 60))
    line = np.clip((dead - x) / sigmas, bottom, top)
    ax.fill_between(x, line, top, color=RISK_SHADE, lw=0, zorder=0)
    ax.fill_between(x, bottom, line, color=DEAD_SHADE, lw=0, zorder=0)
    ax.axvline(dead, color=INK, lw=1, ls=(0, (4, 2)))
    small = {"transform": ax.transAxes, "fontsize": 8, "color": SOFT}
    ax.text(0.02, 0.97, "risky", va="top", **small)
    ax.text(0.02, 0.03, "dead", va="bottom", **small)
    _panel(ax, "Std against mean", "E z", "std z")


def _weights(ax: Axes, channels: pd.DataFrame, colours: dict[str, str], thresholds: dict[str, float]) -> None:
    level = channels.groupby("linear").weight_abs.transform(lambda rows: rows.quantile(thresholds["high_weight"]))
    relative = _positive((channels.weight_abs / level.where(level > 0, 1)).to_numpy(float))
    _scatter(ax, channels, relative, colours)
    _asinh_axis(ax.xaxis, np.append(channels.z_mean.to_numpy(float), 1.5 * thresholds["dead"]))
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
    _panel(ax, "Weights against mean", "E z", share)


def _ridges(ax: Axes, shown: pd.DataFrame, samples: list[np.ndarray], colours: dict[str, str], dead: float) -> None:
    """Each channel's sampled z as a filled outline, one above the other; its range over all tokens as a line."""
    _panel(ax, "Critical channels, examples", "z of single tokens", "")
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
    _asinh_axis(ax.xaxis, values)
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
            ax.plot(rows.layer, 100 * rows[column], color=colours[name], lw=3 if read else 1.4,
                    zorder=3 if read else 2, label=name + (" (activation follows)" if read else ""))  # fmt: skip
        ax.set_title(f"{column}, % of the linear's channels", x=0, fontsize=9.5, pad=4)
        ax.set_ylim(bottom=0)
        ax.margins(x=0.02)
    panels[-1].xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    panels[-1].set_xlabel("decoder layer")
    fig.legend(*panels[0].get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 0.915), ncols=3,
               frameon=False, fontsize=8.5)  # fmt: skip
    return fig


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
        awq, praq = (_positive(table[f"{kind}_{name}"].to_numpy(float)) for name in ("awq", "praq"))
        ax.scatter(awq, praq, s=5, lw=0, alpha=0.6, color=PALETTE[0] if row.side == "output" else PALETTE[2])
        _log_axis(ax.xaxis, awq)
        _log_axis(ax.yaxis, praq)
        ax.set_title(f"{linear_kind(row.linear)}, {row.side}s", x=0, fontsize=9.5, pad=15)
        rho = f"ρ {row.spearman:.2f} [{row.low:.2f}, {row.high:.2f}]".replace("-", "−")
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
            [], [], color=INK, lw=1, ls=(0, (4, 2)), label=f"threshold {_plain(thresholds['dead'])}"
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
    ax.hist(sample, bins=np.linspace(low, high, 61), color=PALETTE[0], lw=0)
    ax.axvline(row.z_mean, color=AWQ_BETTER, lw=1.6)
    ax.axvline(row.upper_bound, color=AWQ_BETTER, lw=1.6, ls=":")
    ax.axvline(dead, color=INK, lw=1, ls=(0, (4, 2)))
    ax.set_yticks([])
    ax.grid(axis="y", visible=False)
    ax.tick_params(labelsize=8)
    ax.set_xlim(low, high)
    ax.set_title(f"{linear_kind(row.linear)} {row.channel}: {class_words(row)}", x=0, fontsize=8.5, pad=3)


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
    error.yaxis.set_major_formatter(lambda value, _: _plain(value))
    error.set_ylabel("error after SiLU (log scale)")
    kept.set(ylabel="kept outputs of group B, %", xlabel="group B's weights, times group A's", ylim=(-4, 104))
    kept.set_xticks(x, [f"{value:g}" for value in x])
    error.set_title("Error of what is not kept, mean and 95 % interval over seeds", x=-0.1, pad=26)
    error.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, frameon=False, fontsize=9, handlelength=2.2)
    return fig
