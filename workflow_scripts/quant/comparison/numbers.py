"""How differences are judged and written, apart from what computes and draws them."""

import math

CONFIDENCE, LEVEL = 0.95, 0.05  # of intervals, and what p stays under where a difference is shown
# (name, relative perplexity increase it ends at); the research's bands
QUALITY_BANDS = (("excellent", 0.05), ("good", 0.10), ("acceptable", 0.20), ("poor", math.inf))


def linear_kind(linear: str) -> str:
    """model.layers.0.mlp.down_proj → down_proj."""
    return linear.rsplit(".", 1)[-1]


def signed(value: float, digits: int = 3) -> str:
    """With its sign, a true minus; 0 has none."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if float(f"{value:.{digits}f}") else f"{0:.{digits}f}"


def interval(low: float, high: float, digits: int = 3) -> str:
    """[low, high], empty where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{signed(low, digits)}, {signed(high, digits)}]"
