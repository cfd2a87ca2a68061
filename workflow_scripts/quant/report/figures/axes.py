"""Axes with few and plain numbers on them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from quant.comparison.numbers import minus


def log_ticks(ax: Axes, axis: Axis, values: Iterable[float], ticks: Sequence[float] = ()) -> None:
    """A logarithmic axis with plain numbers, at `ticks` where two of them are in range."""
    finite = np.asarray(list(values), dtype=float)
    finite = finite[np.isfinite(finite)]
    pad = math.exp(0.03 + 0.05 * math.log(finite.max() / finite.min()))
    low, high = finite.min() / pad, finite.max() * pad
    (ax.set_xscale if axis is ax.xaxis else ax.set_yscale)("log")
    (ax.set_xlim if axis is ax.xaxis else ax.set_ylim)(low, high)
    few = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
    many = LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,))
    inside = [tick for tick in ticks if low <= tick <= high]
    if len(inside) < 2:
        inside = [tick for tick in (few if high / low < 6 else many).tick_values(low, high) if low <= tick <= high]
    axis.set_ticks(apart(inside, math.log(high / low) / 7))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


def apart(ticks: Iterable[float], least: float) -> list[float]:
    """Ascending ones whose logarithms differ by so much, so that no number is written over the one before it."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or math.log(tick / kept[-1]) >= least:
            kept.append(tick)
    return kept


def asinh_axis(axis: Any, values: np.ndarray) -> None:
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
    axis.set_major_formatter(lambda value, _: plain(value))


def log_axis(axis: Any, values: np.ndarray) -> None:
    name, ax = axis.axis_name, axis.axes
    getattr(ax, f"set_{name}scale")("log")
    low, high = float(np.min(values)), float(np.max(values))
    getattr(ax, f"set_{name}lim")(low / 1.15, high * 1.15)
    digits = (1, 1.5, 2, 3, 5, 7) if high / low < 12 else (1, 3) if high / low < 300 else (1,)
    powers = range(-12, 12, 1 if high / low < 1e4 else 2)
    candidates = [digit * 10.0**power for power in powers for digit in digits]
    inside = [tick for tick in candidates if low / 1.15 <= tick <= high * 1.15]
    least = math.log(high / low) / 3 if name == "x" else 0.0  # numbers side by side in a narrow panel
    axis.set_major_locator(FixedLocator(apart(inside, least)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: plain(value))


def positive(values: np.ndarray) -> np.ndarray:
    """Values raised to where a logarithmic axis can show them: a constant channel has no spread."""
    smallest = values[values > 0].min(initial=np.inf)
    return np.maximum(values, smallest if np.isfinite(smallest) else 1e-6)


def plain(value: float) -> str:
    """A number on an axis: as it is, or as a power of ten far from 1."""
    if 0 < value < 1e-3 or value >= 1e5:
        power = int(np.floor(np.log10(value) + 1e-9))
        digit = f"{value / 10.0**power:.2g}"
        raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return ("" if digit == "1" else digit + "·") + "10" + raised
    return minus(value)


def label_panel(ax: Axes, title: str, xlabel: str, ylabel: str) -> None:
    ax.set_title(title, x=0, fontsize=9.5, pad=5)
    ax.set_xlabel(xlabel, fontsize=8.5, labelpad=2)
    ax.set_ylabel(ylabel, fontsize=8.5, labelpad=2)
    ax.tick_params(labelsize=8)
