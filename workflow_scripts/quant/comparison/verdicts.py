"""What the numbers show, in words: a paired difference, the best method, the check of one layer.

Signs: every delta_nll is first minus second in nats per token, so that below 0 the first is better.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from quant.comparison.numbers import LEVEL, QUALITY_BANDS, interval, number, percent, signed
from quant.comparison.paired import detectable, holm

ORIGINAL = "original"


class Answer(NamedTuple):
    """A verdict: its headline, and the lines that support it."""

    headline: str
    lines: list[str]


class Difference(NamedTuple):
    """A paired difference in nats per token with its 95 % interval over so many sequences, its p corrected for the
    number of comparisons in its family (None: by the interval alone), the smallest difference that could have been
    seen, and what another family's correction starts from: its own p, and its standard error."""

    delta: float
    low: float
    high: float
    sequences: int
    p: float | None = None
    detectable: float = math.nan
    own_p: float | None = None
    error: float = math.nan

    @property
    def outcome(self) -> str:
        """better, worse (the first of the pair, where the corrected p is small), identical, none or unknown."""
        if not all(map(math.isfinite, (self.delta, self.low, self.high))):
            return "unknown"
        if self.delta == self.low == self.high == 0:
            return "identical"
        if self.p is None:
            return "better" if self.high < 0 else "worse" if self.low > 0 else "none"
        return "none" if not self.p <= LEVEL else "better" if self.delta < 0 else "worse"

    def reversed(self) -> "Difference":
        """The second of the pair minus the first."""
        return self._replace(delta=-self.delta, low=-self.high, high=-self.low)

    def text(self, digits: int = 4) -> str:
        return f"{signed(self.delta, digits)} {interval(self.low, self.high, digits)}".strip()


def difference_of(row: Any) -> Difference:
    """From a row of comparisons.csv, summary.csv or sensitivity.csv."""
    p = getattr(row, "p_holm", None)
    own = getattr(row, "p", None)
    return Difference(row.delta_nll, row.delta_nll_low, row.delta_nll_high, int(row.sequences),
                      None if p is None or pd.isna(p) else p, getattr(row, "detectable", math.nan),
                      None if own is None or pd.isna(own) else own, getattr(row, "error", math.nan))  # fmt: skip


def family(found: Sequence[Difference]) -> list[Difference]:
    """Differences corrected for one another and no others, wherever they were taken from; as they are where one has no
    p of its own."""
    own = [one.own_p for one in found]
    if any(p is None for p in own):
        return list(found)
    return [
        one._replace(p=float(p), detectable=detectable(one.error, one.sequences, len(found)))
        for one, p in zip(found, holm([p for p in own if p is not None]), strict=True)
    ]


def difference_in(row: dict[str, Any]) -> Difference:
    """The difference of an answer's pair; JSON has null where a number is missing."""
    delta, low, high, detectable = (
        float("nan") if row[key] is None else row[key]
        for key in ("delta_nll", "delta_nll_low", "delta_nll_high", "detectable")
    )
    return Difference(delta, low, high, row["sequences"], row["p_holm"], detectable)


def quality(increase: float) -> str:
    """The research's band of a relative perplexity increase (0.05: 5 %); what is not finite is poor."""
    return next((name for name, limit in QUALITY_BANDS if increase < limit), "poor")


def pair_difference(comparisons: pd.DataFrame, model: str, dataset: str, first: str, second: str) -> Difference | None:
    """nll(first) - nll(second), whichever way round the pair is stored; None where it was not compared."""
    rows = comparisons[(comparisons.model == model) & (comparisons.dataset == dataset)]
    for a, b in ((first, second), (second, first)):
        for row in rows[(rows.method_a == a) & (rows.method_b == b)].itertuples():
            return difference_of(row) if a == first else difference_of(row).reversed()
    return None


def p_words(p: float | None) -> str:
    """A corrected p as text; empty where there is none."""
    if p is None or pd.isna(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}" if p < 0.1 else f"p {p:.2f}"


def difference_words(name: str, other: str, difference: Difference | None) -> str:
    """One clause that says what a paired difference shows."""
    if difference is None:
        return f"{name} and {other} were not compared"
    numbers = ", ".join(part for part in (f"delta_nll {difference.text()}", p_words(difference.p)) if part)
    seen = f"; one of {difference.detectable:.3f} could have been seen" if math.isfinite(difference.detectable) else ""
    return {
        "better": f"{name} is better than {other} ({numbers})",
        "worse": f"{name} is worse than {other} ({numbers})",
        "none": f"no difference shown between {name} and {other} ({numbers}{seen})",
        "identical": f"{name} and {other} give the same result on every sequence",
        "unknown": f"{name} against {other}: delta_nll {signed(difference.delta, 4)}, with no interval",
    }[difference.outcome]


def ranked(summary: pd.DataFrame, model: str, dataset: str) -> pd.DataFrame:
    """The quantised methods of a model on a data set, lowest NLL first."""
    rows = summary[(summary.model == model) & (summary.dataset == dataset) & (summary.method != ORIGINAL)]
    return rows.sort_values("nll", kind="stable")


def increase(row: Any) -> float:
    """Relative perplexity increase over the original of a row of the summary."""
    return math.expm1(row.delta_nll) if row.delta_nll < 700 else math.inf


def best_answer(summary: pd.DataFrame, comparisons: pd.DataFrame, model: str, dataset: str) -> Answer:
    """The best method, by how much, and how sure: against the runner-up, the original, and every other method."""
    rows = ranked(summary, model, dataset)
    if rows.empty:
        return Answer("No quantised method was evaluated", [])
    best = next(rows.itertuples())
    against = {name: pair_difference(comparisons, model, dataset, best.method, name) for name in rows.method[1:]}
    lines = []
    if against:
        runner_up = rows.method.iloc[1]
        lines.append(f"Against the runner-up: {difference_words(best.method, runner_up, against[runner_up])}.")
    own = difference_of(best)
    lines.append(f"Against the original: {difference_words(best.method, 'the original', own)}.")
    level = [name for name, found in against.items() if found and found.outcome in ("none", "identical")]
    if level:
        lines.append(f"Not told apart from it by this test: {', '.join(level)}.")
    return Answer(best.method, lines)


def best_by_bits(summary: pd.DataFrame, recipes: dict[str, dict[str, Any]], model: str, dataset: str) -> list[str]:
    """A line per code width when the methods have several: a fair choice compares like with like."""
    rows = ranked(summary, model, dataset)
    widths = pd.Series(
        [recipes[row.method].get("bits", round(row.bits_per_weight)) for row in rows.itertuples()], rows.index
    )
    if widths.nunique() < 2:
        return []
    return [
        f"{width} bits: {best.method}, perplexity {number(best.ppl, 2)} "
        f"({percent(increase(best))}, {quality(increase(best))}), {number(best.bits_per_weight, 2)} bits/weight"
        for width, group in rows.groupby(widths)
        for best in [next(group.itertuples())]
    ]


def damping_lines(layers: pd.DataFrame, recipes: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each method with second moments that needed more damping than its recipe asks for."""
    lines = []
    for method, recipe in recipes.items():
        more = layers[(layers.method == method) & (layers.damp > recipe.get("damp", math.inf))]
        if len(more):
            names = ", ".join(more.linear.iloc[:3]) + (", …" if len(more) > 3 else "")
            lines.append(
                f"{method}: with damp {recipe['damp']:g} the second moment is not positive definite in {len(more)} "
                f"{'linear' if len(more) == 1 else 'linears'} ({names}); up to {more.damp.max():g} was taken."
            )
    return lines


def check_difference(linear: dict[str, Any]) -> Difference:
    """PRAQ's error minus AWQ's of one linear of the checked layer."""
    return Difference(linear["difference"], linear["low"], linear["high"], 0, linear.get("p_holm"))


def check_answer(check: dict[str, Any]) -> Answer:
    """Whose choice of kept channels errs less on the checked layer, by p corrected for the number of linears."""
    outcomes = [check_difference(x).outcome for x in check["linears"]]
    praq, awq, total = outcomes.count("better"), outcomes.count("worse"), len(outcomes)
    headline = "AWQ's choice errs less more often" if awq > praq else "PRAQ's choice errs less more often"
    if awq == praq:
        headline = "No winner: as many linears for AWQ as for PRAQ" if awq else "No difference shown"
    kept = f"{100 * check['keep_ratio']:g} %"
    line = (
        f"{check['words']}: {kept} of the output channels kept in 16 bit and the rest INT4. AWQ's choice of "
        f"channels has the lower output error in {awq} of {total} linears, PRAQ's in {praq}, and in "
        f"{total - awq - praq} no difference is shown (paired by sequence, corrected for {total} linears; "
        f"{check['tokens']:,} tokens of {check['dataset']})."
    )
    out = check["left_out"]
    experts = f"{out} linears of experts are left out, since they see some tokens of a sequence only."
    return Answer(headline, [line, experts] if out else [line])
