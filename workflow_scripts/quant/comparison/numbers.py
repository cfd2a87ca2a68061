"""How differences are judged and written, apart from what computes and draws them."""

import math

import pandas as pd

CONFIDENCE, LEVEL = 0.95, 0.05  # of intervals, and what p stays under where a difference is shown
# (name, relative perplexity increase it ends at); the research's bands
QUALITY_BANDS = (("excellent", 0.05), ("good", 0.10), ("acceptable", 0.20), ("poor", math.inf))


def minus(value: float, form: str = "g") -> str:
    """A number in that format with a true minus; 0 has none."""
    text = f"{value:{form}}"
    return text.replace("-", "−") if text.strip("-0.") else text.lstrip("-")


def signed(value: float, digits: int = 3) -> str:
    """With its sign, a true minus; 0 has none."""
    if not math.isfinite(value):
        return "–"
    text = minus(value, f"+.{digits}f")
    return text if float(f"{value:.{digits}f}") else f"{0:.{digits}f}"


def interval(low: float, high: float, digits: int = 3) -> str:
    """[low, high], empty where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{signed(low, digits)}, {signed(high, digits)}]"


def number(value: float | None, digits: int) -> str:
    """Fixed digits with thousands separators; a dash for what is missing; short for what is huge."""
    if value is None or pd.isna(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return minus(value, ".2e" if abs(value) >= 1e6 else f",.{digits}f")


def percent(value: float) -> str:
    """A relative increase with its sign; as a factor from tenfold on."""
    if math.isnan(value):
        return "–"
    return f"×{number(1 + value, 0)}" if value >= 9 else f"{signed(100 * value, 1)} %"


def duration(seconds: float) -> str:
    """Seconds as h, min or s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
