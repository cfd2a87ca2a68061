"""What the numbers show, in words: a paired difference, the best method, the check of one layer.

Signs: every delta_nll or delta_kl is first minus second in nats per token, so that below 0 the first is better.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from quant.comparison.measures import MEASURES, other
from quant.comparison.numbers import LEVEL, QUALITY_BANDS, interval, number, percent, signed
from quant.comparison.paired import detectable, holm

ORIGINAL = "original"
MOST = 6  # pairs that a line names


class Answer(NamedTuple):
    """A verdict: its headline, and the lines that support it."""

    headline: str
    lines: list[str]


class Difference(NamedTuple):
    """A paired difference in nats per token with its 95 % interval over so many sequences, its p corrected for the
    number of comparisons in its family (None: by the interval alone), the smallest difference that could have been
    seen, what another family's correction starts from (its own p, and its standard error), and the measure."""

    delta: float
    low: float
    high: float
    sequences: int
    p: float | None = None
    detectable: float = math.nan
    own_p: float | None = None
    error: float = math.nan
    by: str = "nll"

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


def difference_of(row: Any, by: str = "nll") -> Difference:
    """From a row of comparisons.csv; by NLL of summary.csv or sensitivity.csv too. A table without the measure says
    nothing of it."""
    measure = MEASURES[by]

    def value(name: str) -> float:
        found = getattr(row, name, None)
        return math.nan if found is None or pd.isna(found) else float(found)

    def p_of(name: str) -> float | None:
        found = value(f"{name}{measure.suffix}")
        return None if math.isnan(found) else found

    delta, low, high = (value(f"{measure.difference}{end}") for end in ("", "_low", "_high"))
    n = value(measure.sequences)
    seen, error = (value(f"{name}{measure.suffix}") for name in ("detectable", "error"))
    sequences = 0 if math.isnan(n) else int(n)
    return Difference(delta, low, high, sequences, p_of("p_holm"), seen, p_of("p"), error, by)


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


def difference_in(row: dict[str, Any], by: str | None = None) -> Difference:
    """The difference of an answer's pair by a measure, that of its verdict if none is named; JSON has null where a
    number is missing."""
    by = by or row.get("by", "nll")
    measure = MEASURES[by]

    def value(name: str) -> float:
        return math.nan if row.get(name) is None else row[name]

    delta, low, high = (value(f"{measure.difference}{end}") for end in ("", "_low", "_high"))
    p, seen = row.get(f"p_holm{measure.suffix}"), value(f"detectable{measure.suffix}")
    return Difference(delta, low, high, row.get(measure.sequences) or 0, p, seen, by=by)


def quality(increase: float) -> str:
    """The research's band of a relative perplexity increase (0.05: 5 %); what is not finite is poor."""
    return next((name for name, limit in QUALITY_BANDS if increase < limit), "poor")


def pair_difference(
    comparisons: pd.DataFrame, model: str, dataset: str, first: str, second: str, by: str = "nll"
) -> Difference | None:
    """First minus second by that measure, whichever way round the pair is stored; None where it was not compared."""
    rows = comparisons[(comparisons.model == model) & (comparisons.dataset == dataset)]
    for a, b in ((first, second), (second, first)):
        for row in rows[(rows.method_a == a) & (rows.method_b == b)].itertuples():
            return difference_of(row, by) if a == first else difference_of(row, by).reversed()
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
    column = MEASURES[difference.by].difference
    numbers = ", ".join(part for part in (f"{column} {difference.text()}", p_words(difference.p)) if part)
    seen = f"; one of {difference.detectable:.3f} could have been seen" if math.isfinite(difference.detectable) else ""
    return {
        "better": f"{name} is better than {other} ({numbers})",
        "worse": f"{name} is worse than {other} ({numbers})",
        "none": f"no difference shown between {name} and {other} ({numbers}{seen})",
        "identical": f"{name} and {other} give the same result on every sequence",
        "unknown": f"{name} against {other}: {column} {signed(difference.delta, 4)}, with no interval",
    }[difference.outcome]


OUTCOMES = {"better": "it is better", "worse": "it is worse", "none": "no difference is shown",
            "identical": "they are the same"}  # fmt: skip


def unlike(one: Difference, another: Difference | None) -> bool:
    """Whether two measures of one pair do not say the same; what has no interval says nothing."""
    return another is not None and "unknown" not in (one.outcome, another.outcome) and one.outcome != another.outcome


def otherwise_words(one: Difference, another: Difference | None) -> str:
    """What the other measure says of a pair, where it says something else; else nothing."""
    if another is None or not unlike(one, another):
        return ""
    measure = MEASURES[another.by]
    numbers = ", ".join(part for part in (f"{measure.difference} {another.text()}", p_words(another.p)) if part)
    return f"; by {measure.words} {OUTCOMES[another.outcome]} ({numbers})"


def contradictions(comparisons: pd.DataFrame) -> list[str]:
    """Lines on one model and data set: which pairs are better by one measure and worse by the other, and how many are
    told apart by one alone; none where no pair has both measures."""
    found = [(row, difference_of(row, "nll"), difference_of(row, "kl")) for row in comparisons.itertuples()]
    outcomes = [(row, nll.outcome, kl.outcome) for row, nll, kl in found if "unknown" not in (nll.outcome, kl.outcome)]
    against = [
        (row.method_a, row.method_b) if nll == "better" else (row.method_b, row.method_a)
        for row, nll, kl in outcomes
        if {nll, kl} == {"better", "worse"}
    ]
    shown = ("better", "worse")
    nll_alone = sum(nll in shown and kl not in shown for _, nll, kl in outcomes)
    kl_alone = sum(kl in shown and nll not in shown for _, nll, kl in outcomes)
    lines = []
    if against:
        named = "; ".join(f"{a} against {b}" for a, b in against[:MOST]) + ("; …" if len(against) > MOST else "")
        lines.append(f"Better by NLL, worse by KL, in {len(against)} of {len(outcomes)} pairs: {named}.")
    if nll_alone or kl_alone:
        lines.append(
            f"Of {len(outcomes)} pairs {nll_alone} are told apart by NLL alone and {kl_alone} by KL alone, each "
            "corrected for all pairs."
        )
    return lines


def ranked(summary: pd.DataFrame, model: str, dataset: str, by: str = "nll") -> pd.DataFrame:
    """The quantised methods of a model on a data set, lowest NLL, or KL, first."""
    rows = summary[(summary.model == model) & (summary.dataset == dataset) & (summary.method != ORIGINAL)]
    return rows.sort_values(MEASURES[by].own, kind="stable")


def increase(row: Any) -> float:
    """Relative perplexity increase over the original of a row of the summary."""
    return math.expm1(row.delta_nll) if row.delta_nll < 700 else math.inf


def best_answer(summary: pd.DataFrame, comparisons: pd.DataFrame, model: str, dataset: str, by: str = "nll") -> Answer:
    """The best method by that measure, by how much, and how sure: against the runner-up, the original, and every other
    method; and the best by the other measure where that is another."""
    rows = ranked(summary, model, dataset, by)
    if rows.empty:
        return Answer("No quantised method was evaluated", [])
    best = next(rows.itertuples())

    def pair(name: str, measure: str) -> Difference | None:
        return pair_difference(comparisons, model, dataset, best.method, name, measure)

    against = {name: pair(name, by) for name in rows.method[1:]}
    lines = []
    if against:
        runner_up = rows.method.iloc[1]
        found = against[runner_up]
        more = "" if found is None else otherwise_words(found, pair(runner_up, other(by)))
        lines.append(f"Against the runner-up: {difference_words(best.method, runner_up, found)}{more}.")
    own = difference_of(best)
    lines.append(f"Against the original: {difference_words(best.method, 'the original', own)}{kl_words(best)}.")
    level = [name for name, found in against.items() if found and found.outcome in ("none", "identical")]
    if level:
        lines.append(f"Not told apart from it by this test: {', '.join(level)}.")
    first = ranked(summary, model, dataset, other(by))
    first = first[first[MEASURES[other(by)].own].notna()].method
    if len(first) and first.iloc[0] != best.method:
        words = difference_words(best.method, first.iloc[0], pair(first.iloc[0], other(by)))
        lines.append(f"By {MEASURES[other(by)].words} the best is {first.iloc[0]}: {words}.")
    return Answer(best.method, lines)


def kl_words(row: Any) -> str:
    """Of a row of the summary, how far its predictions are from the original's."""
    low, high = getattr(row, "kl_low", math.nan), getattr(row, "kl_high", math.nan)
    if not math.isfinite(getattr(row, "kl", math.nan)):
        return ""
    return f"; KL from it {number(row.kl, 4)} {interval(low, high, 4)}".rstrip().replace("+", "")


def best_by_bits(
    summary: pd.DataFrame, recipes: dict[str, dict[str, Any]], model: str, dataset: str, by: str = "nll"
) -> list[str]:
    """A line per code width when the methods have several: a fair choice compares like with like."""
    rows = ranked(summary, model, dataset, by)
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


def lent_lines(layers: pd.DataFrame) -> list[str]:
    """A line where experts have no second moment of their own; of one model."""
    one = layers.drop_duplicates("linear")
    if "lent" not in one or not (lent := one.lent.fillna(False).astype(bool)).any():
        return []
    return [
        f"{lent.sum():,} of {len(one):,} linears, experts, have no second moment of their own: it is their layer's "
        "pooled one, by which their errors too are measured, since moments.budget_gb allows no more."
    ]


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
