"""Which packed checkpoint to deploy: the best under a user's limits, and whether it differs from the runner-up.

Signs: every difference is the first minus the second in nats per token, so that below 0 the first is better.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from quant.comparison.measures import MEASURES, other
from quant.comparison.numbers import number, percent
from quant.comparison.verdicts import (
    Difference,
    difference_words,
    increase,
    otherwise_words,
    p_words,
    pair_difference,
    quality,
    ranked,
)
from quant.files.units import embedding_words, megabytes
from quant.records.method import GGUF, REAL

# what a checkpoint may be limited in: the option, the column of summary.csv and its words
LIMITS = {
    "max_bits_per_weight": ("bits_per_weight", "{:g} bits per weight"),
    "max_size_mb": ("size_mb", "{:g} MB"),
    "max_delta_nll": ("delta_nll", "a delta_nll of {:g}"),
    "max_kl": ("kl", "a KL of {:g}"),
}


class Choice(NamedTuple):
    """method is None where no packed checkpoint is within the limits; runner_up where no other is.

    difference: of method minus runner_up by KL where it is chosen by that, else by NLL; None where they were not
    compared. headline and lines say all of it in words. curve: the packed checkpoints that none of at most their size
    betters, smallest first. storage: of method, gguf where that file was measured.
    """

    model: str
    dataset: str
    method: str | None
    runner_up: str | None
    difference: Difference | None
    headline: str
    lines: list[str]
    curve: Sequence[dict[str, Any]] = ()
    storage: str | None = None

    @property
    def folder(self) -> str | None:
        """Of the checkpoint, from where the workflow runs."""
        return None if self.method is None else f"results/{self.model}/{self.method}/checkpoint"

    @property
    def path(self) -> str | None:
        """Of what was measured: the checkpoint, or its GGUF file."""
        return f"results/{self.model}/{self.method}/export/gguf/model.gguf" if self.storage == GGUF else self.folder

    @property
    def shown(self) -> bool:
        """Whether the two differ, by the verdict that the report gives on them."""
        return self.difference is not None and self.difference.outcome in ("better", "worse")


def limits_words(options: dict[str, Any]) -> str:
    """`at most 4.5 bits per weight and 200 MB and storage: gguf`, or nothing where there is no limit."""
    words = [text.format(options[key]) for key, (_, text) in LIMITS.items() if options.get(key) is not None]
    kind = [f"storage: {options['storage']}"] if options.get("storage") is not None else []
    return " and ".join(([f"at most {' and '.join(words)}"] if words else []) + kind)


def within(rows: pd.DataFrame, options: dict[str, Any]) -> pd.DataFrame:
    """The rows of a summary that keep to every limit, of the kind of file that is asked for."""
    for key, (column, _) in LIMITS.items():
        if options.get(key) is not None:
            rows = rows[rows[column] <= options[key]]
    return rows if options.get("storage") is None else rows[rows.storage == options["storage"]]


def more_words(row: Any, options: dict[str, Any]) -> str:
    """Which limits would have to give way for a row of the summary; nothing where none is broken."""
    broken = [key for key, (column, _) in LIMITS.items() if options.get(key) is not None and row[column] > options[key]]
    return f"; to take it, allow more in choose: {', '.join(broken)}" if broken else ""


def none_words(packed: pd.DataFrame, options: dict[str, Any]) -> str:
    """Why none of the rows of a summary is within the limits, and what would have to give way for the smallest of those
    that are of the kind of file that is asked for."""
    if packed.empty:
        return "No method of the study is stored packed: a recipe that is has scope: shared, or no salience."
    kind = {"storage": options.get("storage")}
    takeable = within(packed, kind)
    if takeable.empty:
        return (
            f"Of {len(packed)} packed ones none has {limits_words(kind)}; to take another, leave choose: storage out."
        )
    least = takeable.sort_values(["bits_per_weight", "size_mb"], kind="stable").iloc[0]
    return (
        f"Of {len(takeable)} packed ones none has {limits_words(options)}; the smallest, {least.method}, has "
        f"{least.bits_per_weight:.2f} bits per weight, {megabytes(least.size_mb)} MB, a delta_nll of "
        f"{number(least.delta_nll, 4)} and a KL of {number(least.kl, 4)}{more_words(least, options)}."
    )


def facts_words(row: Any) -> str:
    """What one gets, in one sentence."""
    return (
        f"Perplexity {number(row.ppl, 2)} ({percent(increase(row))} against the original, {quality(increase(row))}), "
        f"{row.bits_per_weight:.2f} bits per weight; the file takes {megabytes(row.size_mb)} MB instead of "
        f"{megabytes(row.size_mb * row.compression)}, embeddings included: {row.compression:.2f} times smaller."
    )


def curve(packed: pd.DataFrame, by: str) -> list[dict[str, Any]]:
    """Of packed checkpoints, by size: those with less `by` than all that are smaller; what a larger file buys."""
    found: list[dict[str, Any]] = []
    columns = ["method", "size_mb", "bits_per_weight", "ppl", "delta_nll", "kl"]
    for row in packed.sort_values(["size_mb", by], kind="stable")[list(dict.fromkeys([*columns, by]))].to_dict(
        "records"
    ):
        if not found or row[by] < found[-1][by]:
            found.append(row)
    return found


def curve_words(found: Sequence[dict[str, Any]], by: str) -> str:
    """The curve in a line."""
    steps = [f"{each['method']} ({megabytes(each['size_mb'])} MB, {number(each[by], 4)})" for each in found]
    return f"What size buys, by {by}: {'; '.join(steps)}."


def room_words(best: Any, packed: pd.DataFrame) -> list[str]:
    """Where the choice is poor, the next in size that is not, if there is one."""
    larger = packed[packed.size_mb > best.size_mb].sort_values("size_mb", kind="stable").itertuples()
    row = next((each for each in larger if quality(increase(each)) != "poor"), None)
    if row is None or quality(increase(best)) != "poor":
        return []
    costs = f"{percent(increase(row))}, {quality(increase(row))}"
    return [f"More room helps: {row.method} takes {megabytes(row.size_mb)} MB and costs {costs}."]


Pair = Callable[[str, str, str], Difference | None]  # of two methods and a measure, as `pair_difference` has it


def level(ordered: pd.DataFrame, pair: Pair) -> list[str]:
    """Of rows by their delta_nll the first and those that this does not tell apart from it; the first alone where one
    of them has no KL to choose by."""
    lead = ordered.method.iloc[0]
    against = {name: pair(lead, name, "nll") for name in ordered.method[1:]}
    found = [lead, *(name for name, one in against.items() if one and one.outcome in ("none", "identical"))]
    return found if ordered.kl[ordered.method.isin(found)].map(math.isfinite).all() else [lead]


def in_order(fitting: pd.DataFrame, by: str, pair: Pair) -> tuple[pd.DataFrame, list[str]]:
    """The best first, the smaller of two alike; and of which methods, the one of least `by` first, KL was the judge."""
    ordered = fitting.sort_values([by, "size_mb", "method"], kind="stable")
    if ordered.empty or by != MEASURES["nll"].rise:
        return ordered, []
    judged = level(ordered, pair)
    by_kl = ordered.method.isin(judged)
    return pd.concat([ordered[by_kl].sort_values(["kl", "size_mb"], kind="stable"), ordered[~by_kl]]), judged


def why_words(order: pd.DataFrame, by: str, judged: Sequence[str], what: str, pair: Pair) -> str:
    """Why the first is taken; what: of how many of which kind it is the first."""
    best = order.method.iloc[0]
    lead = judged[0] if judged else best
    found = pair(best, lead, "nll")
    if best == lead or found is None:
        return f"The lowest {by} of {what}."
    kl = dict(zip(order.method, order.kl, strict=True))
    numbers = ", ".join(part for part in (found.text(), p_words(found.p)) if part)
    return (
        f"{lead} has the lowest {by} of {what}, but {len(judged)} are not told apart by it: of these {best} has the "
        f"lowest KL, {number(kl[best], 4)}, and {lead} {number(kl[lead], 4)} ({best} minus {lead}: {by} {numbers})."
    )


def choose(summary: pd.DataFrame, comparisons: pd.DataFrame, options: dict[str, Any]) -> Choice:
    """The packed checkpoint of options' model on its dataset with the least `by` within the limits (see LIMITS).

    By delta_nll it is the one of least KL among those that are not told apart from the least. A tie goes to the smaller
    checkpoint. summary, comparisons: the two tables of the study.
    """

    def pair(first: str, second: str, measure: str) -> Difference | None:
        return pair_difference(comparisons, model, dataset, first, second, measure)

    model, dataset, by = options["model"], options["dataset"], options["by"]
    rows = ranked(summary, model, dataset)
    packed = rows[rows.storage.isin(REAL) & rows[by].map(math.isfinite)]
    fitting, judged = in_order(within(packed, options), by, pair)
    limits = limits_words(options)
    if fitting.empty:
        lines = [none_words(packed, options)]
        return Choice(model, dataset, None, None, None, "No checkpoint fits", lines, curve(packed, by))
    best = next(fitting.itertuples())
    asked = f" with {limits}" if limits else ""
    room = room_words(best, packed)
    what = "packed checkpoints" if set(fitting.storage) == {"packed"} else "files of codes"
    before = summary[(summary.model == model) & (summary.dataset == dataset) & (summary.storage == "original")]
    large = [words for row in before.head(1).itertuples() if (words := embedding_words(best, row))]
    why = why_words(fitting, by, judged, f"{len(fitting)} {what}{asked}", pair)
    lines = [facts_words(best), *room, *large, why]
    runner_up = fitting.method.iloc[1] if len(fitting) > 1 else None
    difference, measure = None, "kl" if by == "kl" else "nll"
    if runner_up is not None:
        difference = pair(best.method, runner_up, measure)
        more = "" if difference is None else otherwise_words(difference, pair(best.method, runner_up, other(measure)))
        lines.append(f"Runner-up: {runner_up}; {difference_words(best.method, runner_up, difference)}{more}.")
    twin = MEASURES[other(measure)]
    if by == MEASURES[measure].rise and fitting[twin.rise].map(math.isfinite).any():
        first = in_order(fitting, twin.rise, pair)[0].method.iloc[0]
        if first != best.method:
            words = difference_words(best.method, first, pair(best.method, first, other(measure)))
            lines.append(f"By {twin.rise} it would be {first}: {words}.")
    ahead = rows[~rows.storage.isin(REAL) & (rows[by] < getattr(best, by))]
    if not ahead.empty:
        first = ahead.sort_values(by).iloc[0]
        lines.append(f"{first.method} has a lower {by}, but is not packed: {first.storage_reason}.")
    front = curve(packed, by)
    if by in ("delta_nll", "kl") and len(front) > 1:
        lines.append(curve_words(front, by))
    return Choice(model, dataset, best.method, runner_up, difference, best.method, lines, front, best.storage)
