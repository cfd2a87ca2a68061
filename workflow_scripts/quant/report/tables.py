"""The report's tables: every method, every pair, the checked layer, the recipes, the cost."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from quant.comparison.measures import MEASURES, other
from quant.comparison.numbers import QUALITY_BANDS, duration, minus, percent
from quant.comparison.verdicts import (
    ORIGINAL,
    Difference,
    check_difference,
    difference_in,
    difference_of,
    increase,
    kl_words,
    p_words,
    quality,
    unlike,
)
from quant.models.structure.names import linear_kind
from quant.recipe.key import shown
from quant.recipe.keys import whole
from quant.report.page import Cell, Span, Table, number_cell, sortable, spans

BANDS = ", ".join(f"{name} under {100 * limit:g} %" for name, limit in QUALITY_BANDS[:-1]) + ", else poor"
DEFINITIONS = {
    "bits/weight": "bits stored per quantised weight, with the scales, zeros and protected channels",
    "perplexity": "exp of the mean negative log likelihood (NLL) per token; lower is better",
    "rise": "how much higher the perplexity is than the original's, and the band that this falls in: " + BANDS,
    "delta_nll": "NLL minus the original's, nats per token, paired by sequence, with its 95 % bootstrap interval",
    "KL": "Kullback-Leibler divergence from the original's next-token distribution, nats per token, with its 95 % "
    "bootstrap interval; 0: the same",
    "top-1": "share of tokens whose most likely next token is the original's",
    "tokens/s": "evaluation speed; with simulated storage it says nothing about the speed of packed weights",
    "quantise": "seconds to quantise, the calibration pass not counted",
    "storage": "packed: real low-bit codes on disk; gguf: so in a GGUF file, whose figures these are; "
    "simulated: rounded weights in 16 bit, so the size is not smaller; point at the word to read why",
}


def summary_table(summary: pd.DataFrame, colours: dict[str, str], by: str = "nll") -> Table:
    """Every method of every model and data set, each block with the original on top, then the best by that measure."""
    several = [key for key in ("model", "dataset") if summary[key].nunique() > 1]
    names = ["method", "perplexity", *several, "rise", "delta_nll", "bits/weight", "size, MB", "storage", "KL", "top-1",
             "tokens/s", "quantise"]  # fmt: skip
    blocks = summary.assign(last=summary.method != ORIGINAL).groupby(["model", "dataset"], sort=False)
    ordered = [
        row for _, block in blocks for row in block.sort_values(["last", MEASURES[by].own], kind="stable").itertuples()
    ]
    ends = [(row.delta_nll_low, row.delta_nll, row.delta_nll_high) for row in ordered]
    # one method gone wild does not press the others together
    drawn = spans(ends, 6 * max(summary.delta_nll[summary.method != ORIGINAL].abs().median(), 0.01))
    rows = [_summary_row(row, several, colours, span) for row, span in zip(ordered, drawn, strict=True)]
    return Table("summary", _headings(names), rows)


def _summary_row(row: Any, several: list[str], colours: dict[str, str], span: Span | None) -> list[Cell]:
    own = difference_of(row)
    original = row.method == ORIGINAL
    rise, band = increase(row), "" if original else quality(increase(row))
    return [
        Cell(row.method, row.method, colours.get(row.method, "")),
        number_cell(row.ppl, 2),
        *(Cell(str(getattr(row, key)), str(getattr(row, key))) for key in several),
        Cell("–" if original else percent(rise), sortable(rise), css="num", band=band),
        Cell("–" if original else own.text(4 if abs(own.delta) < 0.01 else 3), sortable(row.delta_nll), css="num",
             span=None if original else span),
        number_cell(row.bits_per_weight, 2),
        number_cell(row.size_mb, 1),
        Cell(str(row.storage), str(row.storage), title="" if pd.isna(row.storage_reason) else str(row.storage_reason)),
        number_cell(row.kl, 4) if original else
        Cell(kl_words(row).removeprefix("; KL from it ") or "–", sortable(row.kl), css="num"),
        Cell("–" if pd.isna(row.top1_agreement) else f"{100 * row.top1_agreement:.1f} %", sortable(row.top1_agreement),
             css="num"),
        number_cell(row.tokens_per_s, 0),
        Cell("–", -1, css="num") if original else number_cell(row.quantize_s, 1, " s"),
    ]  # fmt: skip


VERDICTS = {"better": "first is better", "worse": "second is better", "none": "no difference shown",
            "identical": "identical", "unknown": "no interval"}  # fmt: skip
ALL_PAIRS, OWN_PAIRS = "all pairs of methods of this study", "this question's own pairs"


def pair_headings(family: str, by: str = "nll") -> list[tuple[str, str]]:
    """Of difference_cells; family: what the p is corrected for; by: the measure that the verdict rests on."""
    return [
        (MEASURES[by].difference, "first minus second, nats per token, with its 95 % interval"),
        ("p", f"the chance of so large a difference if there were none, corrected for {family} (Holm)"),
        ("could be seen", "a true difference of this size would be shown half of the time"),
        ("verdict", f"by the corrected p of {MEASURES[by].words}, at 5 %"),
    ]


def other_headings(by: str) -> list[tuple[str, str]]:
    """Of other_cells."""
    measure = MEASURES[other(by)]
    return [
        (measure.difference, f"the same by {measure.words}"),
        (f"by {measure.words}", f"the verdict that {measure.words} gives, corrected in the same way; bold where it is "
         "another"),
    ]  # fmt: skip


def pair_note(family: str) -> str:
    return "; ".join(f"{name}: {words}" for name, words in pair_headings(family)[1:3]) + "."


def difference_cells(found: Difference, span: Span | None = None, digits: int = 4) -> list[Cell]:
    """Under pair_headings."""
    p = Cell(p_words(found.p).removeprefix("p ") or "–", sortable(found.p), css="num")
    verdict = VERDICTS[found.outcome]
    return [
        Cell(found.text(digits), sortable(found.delta), css="num", span=span),
        p,
        number_cell(found.detectable, digits),
        Cell(verdict, verdict),
    ]


def other_cells(found: Difference, another: Difference, digits: int = 4) -> list[Cell]:
    """Under other_headings."""
    verdict = VERDICTS[another.outcome] if another.outcome != "unknown" else "–"
    return [
        Cell(another.text(digits), sortable(another.delta), css="num", title=p_words(another.p)),
        Cell(verdict, verdict, css="unlike" if unlike(found, another) else ""),
    ]


def difference_spans(found: Sequence[Difference]) -> list[Span | None]:
    return spans([(one.low, one.delta, one.high) for one in found])


def pairs_table(comparisons: pd.DataFrame, colours: dict[str, str], by: str = "nll") -> Table:
    """Every pair of methods of one model and data set, the better one by that measure first."""
    ordered = []
    for row in comparisons.itertuples():
        found, another, names = difference_of(row, by), difference_of(row, other(by)), (row.method_a, row.method_b)
        if found.delta > 0:
            found, another, names = found.reversed(), another.reversed(), names[::-1]
        ordered.append((found, another, names))
    drawn = difference_spans([found for found, _, _ in ordered])
    rows = [
        [*(Cell(name, name, colours.get(name, "")) for name in names), *difference_cells(found, span),
         *other_cells(found, another)]
        for (found, another, names), span in zip(ordered, drawn, strict=True)
    ]  # fmt: skip
    first = ("first", f"the method with the lower {MEASURES[by].words}")
    columns = [first, ("second", ""), *pair_headings(ALL_PAIRS, by), *other_headings(by)]
    return Table("pairs", columns, rows, pair_note(ALL_PAIRS))


def answer_pairs_table(pairs: list[dict[str, Any]], colours: dict[str, str]) -> Table:
    """The paired differences that an answer rests on."""
    several = len({row["dataset"] for row in pairs}) > 1
    by, both = pairs[0].get("by", "nll"), all(f"outcome_{each}" in pairs[0] for each in MEASURES)
    differences, rows = list(map(difference_in, pairs)), []
    for row, found, span in zip(pairs, differences, difference_spans(differences), strict=True):
        names = [Cell(row[key], row[key], colours.get(row[key], "")) for key in ("first", "second")]
        place = [Cell(row["dataset"], row["dataset"])] if several else []
        more = other_cells(found, difference_in(row, other(by))) if both else []
        rows.append([Cell(row["group"], row["group"]), *names, *place, *difference_cells(found, span), *more])
    where = [("data set", "")] if several else []
    beside = other_headings(by) if both else []
    columns = [("what", ""), ("first", ""), ("second", ""), *where, *pair_headings(OWN_PAIRS, by), *beside]
    return Table("answer", columns, rows, pair_note(OWN_PAIRS))


def values_table(values: list[dict[str, Any]], colours: dict[str, str]) -> Table:
    """Rows of an answer as they are; a method has its colour."""

    def cell(key: str, value: Any) -> Cell:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return Cell(f"{value:,}", value, css="num") if isinstance(value, int) else number_cell(value, 4)
        text = "–" if value is None else str(value)
        head = text.split(" ")[0].rstrip("%").replace(",", "").replace("−", "-")
        try:
            return Cell(text, sortable(float(head)), css="num")
        except ValueError:
            return Cell(text, text, colours.get(text, "") if key == "method" else "")

    columns = {key: [cell(key, row[key]) for row in values] for key in values[0]}
    for key, cells in columns.items():  # a dash among numbers is a number that is missing
        if any(one.css == "num" for one in cells):
            columns[key] = [Cell("–", sortable(None), css="num") if one.text == "–" else one for one in cells]
    return Table("values", [(key, "") for key in columns], list(map(list, zip(*columns.values(), strict=True))))


def check_table(check: dict[str, Any], channels: pd.DataFrame | None) -> Table:
    """The checked layer's linears: both errors, their difference, and the share of kept channels in common."""
    rows = []
    for linear in check["linears"]:
        found = check_difference(linear)
        errors = linear["mse_awq"], linear["mse_praq"]
        delta, low, high = (minus(value, "+.2e") for value in (found.delta, found.low, found.high))
        verdict = {"better": "PRAQ better", "worse": "AWQ better"}.get(found.outcome, "no difference shown")
        common = _common_channels(channels, linear["linear"])
        rows.append(
            [
                Cell(linear_kind(linear["linear"]), linear["linear"]),
                *(Cell(minus(error, ".3e"), sortable(error), css="num") for error in errors),
                Cell(f"{delta} [{low}, {high}]", sortable(found.delta), css="num"),
                Cell("–" if common is None else f"{100 * common:.0f} %", sortable(common), css="num"),
                Cell(verdict, verdict),
            ]
        )
    headings = [("linear", ""), ("MSE, AWQ's choice", "output error on the first data set"), ("MSE, PRAQ's choice", ""),
                ("PRAQ − AWQ", "with its 95 % interval, paired by sequence"),
                ("chosen by both", "share of the kept channels that both choose"),
                ("verdict", "by p corrected for the number of linears")]  # fmt: skip
    return Table("check", headings, rows)


def _common_channels(channels: pd.DataFrame | None, linear: str) -> float | None:
    """Share of the channels kept by AWQ's score that PRAQ's keeps too."""
    if channels is None:
        return None
    rows = channels[channels.linear == linear]
    kept = rows.kept_awq.sum()
    return float((rows.kept_awq * rows.kept_praq).sum() / kept) if kept else None


def recipes_table(recipes: dict[str, dict[str, Any]], colours: dict[str, str]) -> tuple[Table, dict[str, str]]:
    """The keys in which the methods' recipes differ as a table, and the ones they share, as YAML has them."""
    recipes = {method: recipe for method, recipe in recipes.items() if method != ORIGINAL}
    keys = list(dict.fromkeys(key for recipe in recipes.values() for key in recipe))
    recipes = {method: whole(recipe) for method, recipe in recipes.items()}
    values = {key: [recipe.get(key) for recipe in recipes.values()] for key in keys}
    varying = [key for key in keys if any(value != values[key][0] for value in values[key]) or len(recipes) == 1]
    rows = [
        [
            Cell(method, method, colours.get(method, "")),
            *(_setting(recipe.get(key), _numeric(values[key])) for key in varying),
        ]
        for method, recipe in recipes.items()
    ]
    shared = {key: shown(values[key][0]) for key in keys if key not in varying}
    return Table("recipes", [("method", ""), *((key, "") for key in varying)], rows), shared


def steps_tables(steps: pd.DataFrame) -> tuple[Table, Table]:
    """Wall time and memory by rule, and by job."""
    grouped = steps.groupby("rule", sort=False)
    rules = [[Cell(rule, rule), number_cell(len(rows), 0), *_costs(rows)] for rule, rows in grouped]
    jobs = [[Cell(row.rule, row.rule), Cell(str(row.job), str(row.job)), *_costs(steps.loc[[row.Index]])]
            for row in steps.itertuples()]  # fmt: skip
    costs = [("wall time", ""), ("memory, MB", "largest resident set of a job")]
    if "gpu_peak_mb" in steps:
        costs.append(("GPU memory, MB", "largest allocation of a job"))
    said: list[tuple[str, str]] = []
    if "planned_s" in steps:
        said = [("planned time", "results/plan.txt"), ("planned memory, MB", "results/plan.txt")]
        said += [("planned GPU memory, MB", "results/plan.txt")] * ("gpu_peak_mb" in steps)
        rules = [[*row, *_planned(rows)] for row, (_, rows) in zip(rules, grouped, strict=True)]
    return (
        Table("rules", [("rule", ""), ("jobs", ""), *costs, *said], rules),
        Table("jobs", [("rule", ""), ("job", ""), *costs], jobs),
    )


def _costs(rows: pd.DataFrame) -> list[Cell]:
    """Summed wall time and largest memory of some jobs."""
    seconds = rows.seconds.sum()
    memory = [number_cell(rows[key].max(), 0) for key in ("max_rss_mb", "gpu_peak_mb") if key in rows]
    return [Cell(duration(seconds), sortable(seconds), css="num"), *memory]


def _planned(rows: pd.DataFrame) -> list[Cell]:
    """What a plan said of these jobs; a dash where it says nothing."""
    seconds = rows.planned_s.sum(min_count=1)
    time = Cell("–", -1.0, css="num") if pd.isna(seconds) else Cell(duration(seconds), sortable(seconds), css="num")
    keys = ["planned_mb", *(["planned_gpu_mb"] if "gpu_peak_mb" in rows else [])]
    return [time, *(number_cell(rows[key].max(), 0) for key in keys)]


def _headings(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, DEFINITIONS.get(name, "")) for name in names]


def _setting(value: Any, numeric: bool) -> Cell:
    """A value of a recipe, as YAML has it; missing and null are a dash; numeric: of a column of numbers."""
    text = "–" if value is None else shown(value)
    return Cell(text, sortable(value) if numeric else text, css="num" if numeric else "")


def _numeric(values: Iterable[Any]) -> bool:
    given = [value for value in values if value is not None]
    return bool(given) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in given)
