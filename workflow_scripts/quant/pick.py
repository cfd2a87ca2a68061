"""Which packed checkpoint to deploy: the best under a user's limits, and whether it differs from the runner-up.

Signs: every difference is the first minus the second in nats per token, so that below 0 the first is better.
"""

import math
from typing import Any, NamedTuple

import pandas as pd

ORIGINAL = "original"
# what a checkpoint may be limited in: the option, the column of summary.csv and its words
LIMITS = {
    "max_bits_per_weight": ("bits_per_weight", "{:g} bits per weight"),
    "max_size_mb": ("size_mb", "{:g} MB"),
    "max_delta_nll": ("delta_nll", "a delta_nll of {:g}"),
}


class Choice(NamedTuple):
    """method is None where no packed checkpoint is within the limits; runner_up where no other is.

    difference: delta_nll of method minus runner_up with the ends of its 95 % interval, None where they were not
    compared; shown: whether that interval excludes 0. headline and lines say all of it in words.
    """

    model: str
    dataset: str
    method: str | None
    runner_up: str | None
    difference: tuple[float, float, float] | None
    shown: bool
    headline: str
    lines: list[str]


def difference_between(
    comparisons: pd.DataFrame, model: str, dataset: str, first: str, second: str
) -> tuple[float, float, float] | None:
    """delta_nll of first minus second, low and high, whichever way round the pair is stored."""
    rows = comparisons[(comparisons.model == model) & (comparisons.dataset == dataset)]
    for row in rows.itertuples():
        if (row.method_a, row.method_b) == (first, second):
            return row.delta_nll, row.delta_nll_low, row.delta_nll_high
        if (row.method_a, row.method_b) == (second, first):
            return -row.delta_nll, -row.delta_nll_high, -row.delta_nll_low
    return None


def limits_words(options: dict[str, Any]) -> str:
    """`at most 4.5 bits per weight and 200 MB`, or nothing where there is no limit."""
    words = [text.format(options[key]) for key, (_, text) in LIMITS.items() if options.get(key) is not None]
    return f"at most {' and '.join(words)}" if words else ""


def within(rows: pd.DataFrame, options: dict[str, Any]) -> pd.DataFrame:
    """The rows of a summary that keep to every limit."""
    for key, (column, _) in LIMITS.items():
        if options.get(key) is not None:
            rows = rows[rows[column] <= options[key]]
    return rows


def runner_up_words(method: str, other: str, difference: tuple[float, float, float] | None) -> str:
    """One sentence on the two that are nearest to the choice."""
    if difference is None:
        return f"Runner-up: {other}; the two were not compared."
    delta, low, high = difference
    numbers = f"delta_nll {delta:+.4f} [{low:+.4f}, {high:+.4f}]".replace("-", "−")
    if low <= 0 <= high:
        return f"Runner-up: {other}; no difference shown ({numbers}: the interval contains 0)."
    verdict = "better" if high < 0 else "worse"
    return f"Runner-up: {other}; {method} is {verdict} in perplexity, and the difference is shown ({numbers})."


def facts_words(row: Any) -> str:
    """What one gets, in one sentence."""
    rise = f"{100 * math.expm1(row.delta_nll):+.1f} %".replace("-", "−") if row.delta_nll < 10 else "very high"
    return (
        f"Perplexity {row.ppl:.2f} ({rise} against the original), {row.bits_per_weight:.2f} bits per weight, "
        f"{row.size_mb:,.0f} MB: {row.compression:.2f} times smaller."
    )


def choose(summary: pd.DataFrame, comparisons: pd.DataFrame, options: dict[str, Any]) -> Choice:
    """The packed checkpoint of options' model on its dataset with the least `by` within the limits (see LIMITS).

    A tie goes to the smaller checkpoint. summary, comparisons: the two tables of the study.
    """
    model, dataset, by = options["model"], options["dataset"], options["by"]
    rows = summary[(summary.model == model) & (summary.dataset == dataset) & (summary.method != ORIGINAL)]
    packed = rows[(rows.storage == "packed") & rows[by].map(math.isfinite)]
    fitting = within(packed, options).sort_values([by, "size_mb", "method"], kind="stable")
    limits = limits_words(options)
    if fitting.empty:
        lines = ["No method of the study is stored packed (no salience or scope: shared, at 4 or 8 bits)."]
        if not packed.empty:
            least = packed.sort_values("bits_per_weight").iloc[0]
            lines = [
                f"Of {len(packed)} packed ones none has {limits}; the smallest, {least.method}, has "
                f"{least.bits_per_weight:.2f} bits per weight, {least.size_mb:,.0f} MB and a delta_nll of "
                f"{least.delta_nll:.4f}."
            ]
        return Choice(model, dataset, None, None, None, False, "No checkpoint fits", lines)
    best = next(fitting.itertuples())
    asked = f" with {limits}" if limits else ""
    lines = [facts_words(best), f"The lowest {by} of {len(fitting)} packed checkpoints{asked}."]
    runner_up = fitting.method.iloc[1] if len(fitting) > 1 else None
    difference = None
    if runner_up is not None:
        difference = difference_between(comparisons, model, dataset, best.method, runner_up)
        lines.append(runner_up_words(best.method, runner_up, difference))
    ahead = rows[(rows.storage != "packed") & (rows[by] < getattr(best, by))]
    if not ahead.empty:
        first = ahead.sort_values(by).iloc[0]
        lines.append(f"{first.method} has a lower {by}, but is not packed: {first.storage_reason}.")
    shown = difference is not None and not difference[1] <= 0 <= difference[2]
    return Choice(model, dataset, best.method, runner_up, difference, shown, best.method, lines)
