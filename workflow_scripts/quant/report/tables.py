"""The report's tables: every method, every pair, the checked layer, the recipes, the cost."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from quant.comparison.numbers import QUALITY_BANDS, duration, percent
from quant.comparison.verdicts import (
    ORIGINAL,
    Difference,
    check_difference,
    difference_in,
    difference_of,
    increase,
    p_words,
    quality,
)
from quant.models.names import linear_kind
from quant.report.page import Cell, Table, number_cell, sortable

BANDS = ", ".join(f"{name} under {100 * limit:g} %" for name, limit in QUALITY_BANDS[:-1]) + ", else poor"
DEFINITIONS = {
    "bits/weight": "bits stored per quantised weight, with the scales, zeros and protected channels",
    "perplexity": "exp of the mean negative log likelihood (NLL) per token; lower is better",
    "rise": "how much higher the perplexity is than the original's, and the band that this falls in: " + BANDS,
    "delta_nll": "NLL minus the original's, nats per token, paired by sequence, with its 95 % bootstrap interval",
    "KL": "Kullback-Leibler divergence from the original's next-token distribution, nats per token; 0: the same",
    "top-1": "share of tokens whose most likely next token is the original's",
    "tokens/s": "evaluation speed; with simulated storage it says nothing about the speed of packed weights",
    "quantise": "seconds to quantise, the calibration pass not counted",
    "storage": "packed: real low-bit codes on disk; simulated: rounded weights in 16 bit, so the size is not smaller; "
    "point at the word to read why",
}


def summary_table(summary: pd.DataFrame, colours: dict[str, str]) -> Table:
    """Every method of every model and data set, each block with the best first and the original on top."""
    several = [key for key in ("model", "dataset") if summary[key].nunique() > 1]
    names = ["method", *several, "bits/weight", "size, MB", "perplexity", "rise", "delta_nll", "KL",
             "top-1", "tokens/s", "quantise", "storage"]  # fmt: skip
    rows = summary.assign(last=summary.method != ORIGINAL).groupby(["model", "dataset"], sort=False)
    ordered = [row for _, block in rows for row in block.sort_values(["last", "nll"], kind="stable").itertuples()]
    return Table("summary", _headings(names), [_summary_row(row, several, colours) for row in ordered])


def _summary_row(row: Any, several: list[str], colours: dict[str, str]) -> list[Cell]:
    own = difference_of(row)
    original = row.method == ORIGINAL
    rise, band = increase(row), "" if original else quality(increase(row))
    return [
        Cell(row.method, row.method, colours.get(row.method, "")),
        *(Cell(str(getattr(row, key)), str(getattr(row, key))) for key in several),
        number_cell(row.bits_per_weight, 2),
        number_cell(row.size_mb, 1),
        number_cell(row.ppl, 2),
        Cell("–" if original else percent(rise), sortable(rise), css="num", band=band),
        Cell("–" if original else own.text(), sortable(row.delta_nll), css="num"),
        number_cell(row.kl, 4),
        Cell("–" if pd.isna(row.top1_agreement) else f"{100 * row.top1_agreement:.1f} %", sortable(row.top1_agreement),
             css="num"),
        number_cell(row.tokens_per_s, 0),
        Cell("–", -1, css="num") if original else number_cell(row.quantize_s, 1, " s"),
        Cell(str(row.storage), str(row.storage), title="" if pd.isna(row.storage_reason) else str(row.storage_reason)),
    ]  # fmt: skip


VERDICTS = {"better": "first is better", "worse": "second is better", "none": "no difference shown",
            "identical": "identical", "unknown": "no interval"}  # fmt: skip
PAIR_HEADINGS = [
    ("delta_nll", "first minus second, nats per token, with its 95 % interval"),
    ("p", "of no difference, corrected for the number of comparisons (Holm)"),
    ("could be seen", "the half width of an interval corrected for that number: a true difference of this size would "
     "be shown half of the time"),
    ("verdict", "by the corrected p, at 5 %"),
]  # fmt: skip


def difference_cells(found: Difference, digits: int = 4) -> list[Cell]:
    """Under PAIR_HEADINGS."""
    p = Cell(p_words(found.p).removeprefix("p ") or "–", sortable(found.p), css="num")
    verdict = VERDICTS[found.outcome]
    return [
        Cell(found.text(digits), sortable(found.delta), css="num"),
        p,
        number_cell(found.detectable, digits),
        Cell(verdict, verdict),
    ]


def pairs_table(comparisons: pd.DataFrame, colours: dict[str, str]) -> Table:
    """Every pair of methods of one model and data set, the better one first."""
    rows = []
    for row in comparisons.itertuples():
        found, first, second = difference_of(row), row.method_a, row.method_b
        if found.delta > 0:
            found, first, second = found.reversed(), second, first
        cells = [Cell(name, name, colours.get(name, "")) for name in (first, second)]
        rows.append([*cells, *difference_cells(found)])
    return Table("pairs", [("first", "the method with the lower NLL"), ("second", ""), *PAIR_HEADINGS], rows)


def answer_pairs_table(pairs: list[dict[str, Any]], colours: dict[str, str]) -> Table:
    """The paired differences that an answer rests on."""
    several = len({row["dataset"] for row in pairs}) > 1
    rows = []
    for row in pairs:
        names = [Cell(row[key], row[key], colours.get(row[key], "")) for key in ("first", "second")]
        where = [Cell(row["dataset"], row["dataset"])] if several else []
        rows.append([Cell(row["group"], row["group"]), *names, *where, *difference_cells(difference_in(row))])
    where = [("data set", "")] if several else []
    return Table("answer", [("what", ""), ("first", ""), ("second", ""), *where, *PAIR_HEADINGS], rows)


def values_table(values: list[dict[str, Any]], colours: dict[str, str]) -> Table:
    """Rows of an answer as they are; a method has its colour."""

    def cell(key: str, value: Any) -> Cell:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return Cell(f"{value:,}" if isinstance(value, int) else f"{value:.4f}", sortable(value), css="num")
        text = "–" if value is None else str(value)
        head = text.split(" ")[0].rstrip("%").replace(",", "").replace("−", "-")
        try:
            return Cell(text, sortable(float(head)), css="num")
        except ValueError:
            return Cell(text, text, colours.get(text, "") if key == "method" else "")

    columns = list(values[0])
    return Table("values", [(key, "") for key in columns], [[cell(key, row[key]) for key in columns] for row in values])


def check_table(check: dict[str, Any], channels: pd.DataFrame | None) -> Table:
    """The checked layer's linears: both errors, their difference, and the share of kept channels in common."""
    rows = []
    for linear in check["linears"]:
        found = check_difference(linear)
        verdict = {"better": "PRAQ better", "worse": "AWQ better"}.get(found.outcome, "no difference shown")
        common = _common_channels(channels, linear["linear"])
        rows.append(
            [
                Cell(linear_kind(linear["linear"]), linear["linear"]),
                *(Cell(f"{linear[key]:.3e}", sortable(linear[key]), css="num") for key in ("mse_awq", "mse_praq")),
                Cell(f"{found.delta:+.2e} [{found.low:+.2e}, {found.high:+.2e}]", sortable(found.delta), css="num"),
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


def recipes_table(recipes: dict[str, dict[str, Any]], colours: dict[str, str]) -> tuple[Table, dict[str, Any]]:
    """The keys in which the methods' recipes differ as a table, and the ones they share."""
    recipes = {method: recipe for method, recipe in recipes.items() if method != ORIGINAL}
    keys = list(dict.fromkeys(key for recipe in recipes.values() for key in recipe))
    values = {key: [recipe.get(key) for recipe in recipes.values()] for key in keys}
    varying = [key for key in keys if any(value != values[key][0] for value in values[key]) or len(recipes) == 1]
    rows = [
        [Cell(method, method, colours.get(method, "")), *(_setting(recipe.get(key)) for key in varying)]
        for method, recipe in recipes.items()
    ]
    shared = {key: values[key][0] for key in keys if key not in varying}
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
    return (
        Table("rules", [("rule", ""), ("jobs", ""), *costs], rules),
        Table("jobs", [("rule", ""), ("job", ""), *costs], jobs),
    )


def _costs(rows: pd.DataFrame) -> list[Cell]:
    """Summed wall time and largest memory of some jobs."""
    seconds = rows.seconds.sum()
    memory = [number_cell(rows[key].max(), 0) for key in ("max_rss_mb", "gpu_peak_mb") if key in rows]
    return [Cell(duration(seconds), sortable(seconds), css="num"), *memory]


def _headings(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, DEFINITIONS.get(name, "")) for name in names]


def _setting(value: Any) -> Cell:
    """A value of a recipe; missing and null are a dash."""
    text = "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return Cell(text, value if isinstance(value, int | float) and not isinstance(value, bool) else text)
