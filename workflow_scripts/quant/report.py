"""The report's words and tables: data frames, SVG texts and the configuration in, one HTML text out.

Signs: every delta_nll is first minus second in nats per token, so that below 0 the first is better.
"""

import base64
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import yaml

from quant.configuration import has_effect
from quant.figures import QUALITY_BANDS, interval, linear_kind, signed

TEMPLATES = Path(__file__).parent.parent / "templates"
ORIGINAL = "original"

# keys of a recipe that change no weight
DESCRIPTIVE = {"description", "label", "note", "caveat"}

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
    "storage": "packed: real low-bit codes on disk; simulated: rounded weights in 16 bit, so the size is not smaller",
}


class Difference(NamedTuple):
    """A paired difference in nats per token with its 95 % interval over so many sequences."""

    delta: float
    low: float
    high: float
    sequences: int

    @property
    def outcome(self) -> str:
        """better, worse (the first of the pair, when the interval excludes 0), identical, none or unknown."""
        if not all(map(math.isfinite, (self.delta, self.low, self.high))):
            return "unknown"
        if self.delta == self.low == self.high == 0:
            return "identical"
        return "better" if self.high < 0 else "worse" if self.low > 0 else "none"

    def text(self, digits: int = 4) -> str:
        return f"{signed(self.delta, digits)} {interval(self.low, self.high, digits)}".strip()


class Cell(NamedTuple):
    """What a table shows and what it sorts by; swatch is a method's colour, band a quality, css a class."""

    text: str
    order: float | str
    swatch: str = ""
    css: str = ""
    band: str = ""


class Table(NamedTuple):
    """columns: (heading, its definition); rows of cells."""

    name: str
    columns: list[tuple[str, str]]
    rows: list[list[Cell]]


class Picture(NamedTuple):
    """A figure as a data URI, the text that stands in for it, and its caption."""

    source: str
    alt: str
    caption: str


class Answer(NamedTuple):
    """A verdict: its headline, and the lines that support it."""

    headline: str
    lines: list[str]


# ---- verdicts


def quality(increase: float) -> str:
    """The research's band of a relative perplexity increase (0.05: 5 %); what is not finite is poor."""
    return next((name for name, limit in QUALITY_BANDS if increase < limit), "poor")


def pair_difference(comparisons: pd.DataFrame, model: str, dataset: str, first: str, second: str) -> Difference | None:
    """nll(first) - nll(second), whichever way round the pair is stored; None where it was not compared."""
    rows = comparisons[(comparisons.model == model) & (comparisons.dataset == dataset)]
    for row in rows.itertuples():
        if (row.method_a, row.method_b) == (first, second):
            return Difference(row.delta_nll, row.delta_nll_low, row.delta_nll_high, int(row.sequences))
        if (row.method_a, row.method_b) == (second, first):
            return Difference(-row.delta_nll, -row.delta_nll_high, -row.delta_nll_low, int(row.sequences))
    return None


def differing_keys(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    """Keys in which two recipes differ with an effect on the weights."""
    return {
        key
        for key in (first.keys() | second.keys()) - DESCRIPTIVE
        if first.get(key) != second.get(key) and (has_effect(key, first) or has_effect(key, second))
    }


def pairs_differing_in(recipes: dict[str, dict[str, Any]], key: str, first: Any, second: Any) -> list[tuple[str, str]]:
    """Pairs of methods alike but for `key`, which is `first` in one and `second` in the other."""
    return [
        (a, b)
        for a, recipe_a in recipes.items()
        for b, recipe_b in recipes.items()
        if recipe_a.get(key) == first and recipe_b.get(key) == second and differing_keys(recipe_a, recipe_b) == {key}
    ]


def salience_answer(outcomes: list[str]) -> str:
    """Does PRAQ beat AWQ? The headline from the outcomes of PRAQ minus AWQ."""
    better, worse, total = outcomes.count("better"), outcomes.count("worse"), len(outcomes)
    of_all = f"of {total} {'recipe' if total == 1 else 'recipes'}"
    if not outcomes:
        return "Not asked"
    if better and worse:
        return f"It depends: better in {better}, worse in {worse} {of_all}"
    if better:
        return f"Yes: better in {better} {of_all}, worse in none"
    if worse:
        return f"No: worse in {worse} {of_all}, better in none"
    return f"No difference shown in {total} {'recipe' if total == 1 else 'recipes'}"


def difference_words(name: str, other: str, difference: Difference | None) -> str:
    """One clause that says what a paired difference shows."""
    if difference is None:
        return f"{name} and {other} were not compared"
    numbers = f"delta_nll {difference.text()}"
    return {
        "better": f"{name} is better than {other} ({numbers})",
        "worse": f"{name} is worse than {other} ({numbers})",
        "none": f"no difference shown between {name} and {other} ({numbers}: the interval contains 0)",
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
    own = Difference(best.delta_nll, best.delta_nll_low, best.delta_nll_high, int(best.sequences))
    lines.append(f"Against the original: {difference_words(best.method, 'the original', own)}.")
    level = [name for name, found in against.items() if found and found.outcome in ("none", "identical")]
    if level:
        lines.append(f"Not told apart from it by this test: {', '.join(level)}.")
    return Answer(best.method, lines)


def best_by_bits(summary: pd.DataFrame, model: str, dataset: str) -> list[str]:
    """A line per code width when the methods have several: a fair choice compares like with like."""
    rows = ranked(summary, model, dataset)
    widths = pd.Series(
        [recipe_of(row).get("bits", round(row.bits_per_weight)) for row in rows.itertuples()], rows.index
    )
    if widths.nunique() < 2:
        return []
    return [
        f"{width} bits: {best.method}, perplexity {number(best.ppl, 2)} "
        f"({percent(increase(best))}, {quality(increase(best))}), {number(best.bits_per_weight, 2)} bits/weight"
        for width, group in rows.groupby(widths)
        for best in [next(group.itertuples())]
    ]


def praq_answer(summary: pd.DataFrame, comparisons: pd.DataFrame, model: str, dataset: str) -> Answer:
    """Does PRAQ beat AWQ on this data set? From every pair alike but for the salience, a line each."""
    rows = ranked(summary, model, dataset).set_index("method", drop=False)
    recipes = {row.method: recipe_of(row) for row in rows.itertuples()}
    outcomes, lines = [], []
    for praq, awq in pairs_differing_in(recipes, "salience", "praq", "l1"):
        found = pair_difference(comparisons, model, dataset, praq, awq)
        outcomes += [found.outcome] if found else []
        both = f"perplexity {number(rows.ppl[praq], 2)} against {number(rows.ppl[awq], 2)}"
        lines.append(f"{recipe_words(recipes[praq])}: {difference_words(praq, awq, found)}; {both}.")
    if not lines:
        lines = ["No two methods here are alike but for salience: praq in one and l1 in the other. Add such a pair."]
    return Answer(salience_answer(outcomes), lines)


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


def check_answer(check: dict[str, Any]) -> Answer:
    """Whose choice of kept channels errs less on the checked layer, by the intervals that exclude 0."""
    outcomes = [Difference(x["difference"], x["low"], x["high"], 0).outcome for x in check["linears"]]
    praq, awq, total = outcomes.count("better"), outcomes.count("worse"), len(outcomes)
    headline = "AWQ's choice errs less more often" if awq > praq else "PRAQ's choice errs less more often"
    if awq == praq:
        headline = "No winner: as many linears for AWQ as for PRAQ" if awq else "No difference shown"
    kept = f"{100 * check['keep_ratio']:g} %"
    line = (
        f"Layer {check['layer']}, {kept} of the output channels kept in 16 bit and the rest INT4: AWQ's choice of "
        f"channels has the lower output error in {awq} of {total} linears, PRAQ's in {praq}, and in "
        f"{total - awq - praq} no difference is shown (95 % intervals paired by sequence; {check['tokens']:,} tokens "
        f"of {check['dataset']})."
    )
    return Answer(headline, [line])


# ---- numbers and words


def number(value: float | None, digits: int) -> str:
    """Fixed digits with thousands separators; a dash for what is missing; short for what is huge."""
    if value is None or pd.isna(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:.2e}" if abs(value) >= 1e6 else f"{value:,.{digits}f}"


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


def recipe_of(row: Any) -> dict[str, Any]:
    """The recipe of a row of the summary."""
    return json.loads(row.recipe) if isinstance(row.recipe, str) and row.recipe else {}


def recipe_words(recipe: dict[str, Any]) -> str:
    """The grid and the rounding of a recipe in a few words, without its salience."""
    size = recipe.get("group_size")
    parts = [
        f"{recipe['bits']} bit" if "bits" in recipe else "",
        "" if size is None else "per channel" if size == -1 else f"groups of {size}",
        {True: "symmetric", False: "asymmetric"}.get(recipe.get("symmetric"), ""),
        recipe.get("rounding", "") if recipe.get("rounding") != "nearest" else "",
    ]
    return ", ".join(part for part in parts if part) or "recipe unknown"


# ---- tables


def summary_table(summary: pd.DataFrame, colours: dict[str, str]) -> Table:
    """Every method of every model and data set, each block with the best first and the original on top."""
    several = [key for key in ("model", "dataset") if summary[key].nunique() > 1]
    names = ["method", *several, "bits/weight", "size, MB", "perplexity", "rise", "delta_nll", "KL",
             "top-1", "tokens/s", "quantise", "storage"]  # fmt: skip
    rows = summary.assign(last=summary.method != ORIGINAL).groupby(["model", "dataset"], sort=False)
    ordered = [row for _, block in rows for row in block.sort_values(["last", "nll"], kind="stable").itertuples()]
    return Table("summary", _headings(names), [_summary_row(row, several, colours) for row in ordered])


def _summary_row(row: Any, several: list[str], colours: dict[str, str]) -> list[Cell]:
    own = Difference(row.delta_nll, row.delta_nll_low, row.delta_nll_high, int(row.sequences))
    original = row.method == ORIGINAL
    rise, band = increase(row), "" if original else quality(increase(row))
    return [
        Cell(row.method, row.method, colours.get(row.method, "")),
        *(Cell(str(getattr(row, key)), str(getattr(row, key))) for key in several),
        _number_cell(row.bits_per_weight, 2),
        _number_cell(row.size_mb, 1),
        _number_cell(row.ppl, 2),
        Cell("–" if original else percent(rise), _sortable(rise), css="num", band=band),
        Cell("–" if original else own.text(), _sortable(row.delta_nll), css="num"),
        _number_cell(row.kl, 4),
        Cell("–" if pd.isna(row.top1_agreement) else f"{100 * row.top1_agreement:.1f} %", _sortable(row.top1_agreement),
             css="num"),
        _number_cell(row.tokens_per_s, 0),
        Cell("–", -1, css="num") if original else _number_cell(row.quantize_s, 1, " s"),
        Cell(str(row.storage), str(row.storage)),
    ]  # fmt: skip


def pairs_table(comparisons: pd.DataFrame, colours: dict[str, str]) -> Table:
    """Every pair of methods of one model and data set, the better one first."""
    names = {"better": "first is better", "worse": "second is better", "none": "no difference shown",
             "identical": "identical", "unknown": "no interval"}  # fmt: skip
    rows = []
    for row in comparisons.itertuples():
        flip = row.delta_nll > 0
        found = Difference(row.delta_nll, row.delta_nll_low, row.delta_nll_high, int(row.sequences))
        first, second = (row.method_b, row.method_a) if flip else (row.method_a, row.method_b)
        found = Difference(-found.delta, -found.high, -found.low, found.sequences) if flip else found
        cells = [Cell(name, name, colours.get(name, "")) for name in (first, second)]
        cells.append(Cell(found.text(), _sortable(found.delta), css="num"))
        rows.append([*cells, Cell(names[found.outcome], names[found.outcome])])
    headings = [("first", "the method with the lower NLL"), ("second", ""), ("delta_nll", "first minus second"),
                ("verdict", "by the 95 % interval")]  # fmt: skip
    return Table("pairs", headings, rows)


def check_table(check: dict[str, Any], channels: pd.DataFrame | None) -> Table:
    """The checked layer's linears: both errors, their difference, and the share of kept channels in common."""
    rows = []
    for linear in check["linears"]:
        found = Difference(linear["difference"], linear["low"], linear["high"], 0)
        verdict = {"better": "PRAQ better", "worse": "AWQ better"}.get(found.outcome, "no difference shown")
        common = _common_channels(channels, linear["linear"])
        rows.append(
            [
                Cell(linear_kind(linear["linear"]), linear["linear"]),
                *(Cell(f"{linear[key]:.3e}", _sortable(linear[key]), css="num") for key in ("mse_awq", "mse_praq")),
                Cell(f"{found.delta:+.2e} [{found.low:+.2e}, {found.high:+.2e}]", _sortable(found.delta), css="num"),
                Cell("–" if common is None else f"{100 * common:.0f} %", _sortable(common), css="num"),
                Cell(verdict, verdict),
            ]
        )
    headings = [("linear", ""), ("MSE, AWQ's choice", "output error on held-out text"), ("MSE, PRAQ's choice", ""),
                ("PRAQ − AWQ", "with its 95 % interval, paired by sequence"),
                ("chosen by both", "share of the kept channels that both choose"), ("verdict", "")]  # fmt: skip
    return Table("check", headings, rows)


def _common_channels(channels: pd.DataFrame | None, linear: str) -> float | None:
    """Share of the channels kept by AWQ's score that PRAQ's keeps too."""
    if channels is None:
        return None
    rows = channels[channels.linear == linear]
    kept = rows.kept_awq.sum()
    return float((rows.kept_awq * rows.kept_praq).sum() / kept) if kept else None


def recipes_table(summary: pd.DataFrame, colours: dict[str, str]) -> tuple[Table, dict[str, Any]]:
    """The keys in which the methods' recipes differ as a table, and the ones they share."""
    recipes = {row.method: recipe_of(row) for row in summary.itertuples() if row.method != ORIGINAL}
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
    rules = [[Cell(rule, rule), _number_cell(len(rows), 0), *_costs(rows)] for rule, rows in grouped]
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
    memory = [_number_cell(rows[key].max(), 0) for key in ("max_rss_mb", "gpu_peak_mb") if key in rows]
    return [Cell(duration(seconds), _sortable(seconds), css="num"), *memory]


def _headings(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, DEFINITIONS.get(name, "")) for name in names]


def _sortable(value: float | None) -> float:
    """What a table sorts a number by: missing ones below all others, infinity above."""
    if value is None or pd.isna(value):
        return -1e300
    return max(min(float(value), 1e300), -1e300)


def _number_cell(value: float, digits: int, unit: str = "") -> Cell:
    text = number(value, digits)
    return Cell(text if text == "–" else text + unit, _sortable(value), css="num")


def _setting(value: Any) -> Cell:
    """A value of a recipe; missing and null are a dash."""
    text = "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return Cell(text, value if isinstance(value, int | float) and not isinstance(value, bool) else text)


# ---- the page


def build(
    summary: pd.DataFrame,
    comparisons: pd.DataFrame,
    layers: pd.DataFrame,
    figures: dict[str, str],
    config: dict[str, Any],
    provenance: dict[str, Any],
    command: str,
    colours: dict[str, str],
    checks: dict[str, Any] | None = None,
    channels: pd.DataFrame | None = None,
    steps: pd.DataFrame | None = None,
    missing: list[dict[str, str]] | None = None,
) -> str:
    """The report as one HTML text; figures: SVG text by the key that `figures.draw` gives it.

    missing: model, method and reason of those that failed.
    """
    models = list(dict.fromkeys(summary.model))
    recipes, shared = recipes_table(summary, colours)
    page = {
        "models": [
            _model(model, i, summary, comparisons, figures, layers, config, colours,
                   (checks or {}).get(model), channels)
            for i, model in enumerate(models)
        ],
        "missing": missing or [],
        "n_pairs": len(comparisons),
        "summary": summary_table(summary, colours),
        "definitions": DEFINITIONS,
        "measured": _measured(summary),
        "recipes": recipes,
        "shared": shared,
        "config": yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=110),
        "versions": provenance.get("versions", {}),
        "facts": {key: _plain(value) for key, value in provenance.items() if key != "versions"},
        "command": command,
        "steps": None if steps is None or steps.empty else steps_tables(steps),
        "total": "" if steps is None or steps.empty else duration(steps.seconds.sum()),
        "peak": 0 if steps is None or steps.empty else steps.max_rss_mb.max(),
        "downloads": [(f"{name}.csv", _csv(frame)) for name, frame in
                      (("summary", summary), ("comparisons", comparisons), ("layers", layers))],
        "library": _library(),
    }  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(page)


def _model(
    model: str,
    place: int,
    summary: pd.DataFrame,
    comparisons: pd.DataFrame,
    figures: dict[str, str],
    layers: pd.DataFrame,
    config: dict[str, Any],
    colours: dict[str, str],
    check: dict[str, Any] | None,
    channels: pd.DataFrame | None,
) -> dict[str, Any]:
    """All that the page says about one model."""
    datasets = _datasets(summary, config, model)
    recipes = {row.method: recipe_of(row) for row in summary[summary.model == model].itertuples()}
    best = ranked(summary, model, datasets[0])
    mine = None if channels is None else channels[channels.model == model]
    return {
        "name": model,
        "anchor": f"model-{place}",
        "caveat": config.get("models", {}).get(model, {}).get("caveat", ""),
        "dataset": datasets[0],
        "n_methods": len(best),
        "best": best_answer(summary, comparisons, model, datasets[0]),
        "facts": _best_facts(best, summary[(summary.model == model) & (summary.dataset == datasets[0])]),
        "colour": "" if best.empty else colours.get(best.method.iloc[0], ""),
        "by_bits": best_by_bits(summary, model, datasets[0]),
        "elsewhere": [_elsewhere(summary, comparisons, model, dataset) for dataset in datasets[1:]],
        "praq": praq_answer(summary, comparisons, model, datasets[0]),
        "praq_elsewhere": {name: praq_answer(summary, comparisons, model, name) for name in datasets[1:]},
        "sections": [
            _dataset(model, dataset, f"model-{place}-data-{i}", summary, comparisons, figures, colours)
            for i, dataset in enumerate(datasets)
        ],
        "pictures": _pictures(figures, f"{model}/", MODEL_PICTURES, model),
        "damping": damping_lines(layers[layers.model == model], recipes),
        "check": None if check is None else {
            "answer": check_answer(check),
            "pictures": _pictures(figures, f"{model}/", CHECK_PICTURES, model),
            "table": check_table(check, mine),
        },
    }  # fmt: skip


def _best_facts(best: pd.DataFrame, rows: pd.DataFrame) -> list[tuple[str, str]]:
    """The few numbers beside the best method's name."""
    if best.empty:
        return []
    row, original = next(best.itertuples()), rows[rows.method == ORIGINAL]
    facts = [("perplexity", number(row.ppl, 2)), ("rise", f"{percent(increase(row))}, {quality(increase(row))}")]
    facts += [("original", number(ppl, 2)) for ppl in original.ppl]
    return [*facts, ("bits/weight", number(row.bits_per_weight, 2)), ("recipe", _full_words(recipe_of(row)))]


def _full_words(recipe: dict[str, Any]) -> str:
    salience = recipe.get("salience")
    return recipe_words(recipe) + (f", salience {salience}" if salience not in (None, "none") else "")


def _elsewhere(summary: pd.DataFrame, comparisons: pd.DataFrame, model: str, dataset: str) -> str:
    """The best method on another data set in one line."""
    answer = best_answer(summary, comparisons, model, dataset)
    return f"On {dataset} the best is {answer.headline}. {answer.lines[0] if answer.lines else ''}"


def _dataset(
    model: str,
    dataset: str,
    anchor: str,
    summary: pd.DataFrame,
    comparisons: pd.DataFrame,
    figures: dict[str, str],
    colours: dict[str, str],
) -> dict[str, Any]:
    """The figures and the table of pairs of one model on one data set."""
    compared = comparisons[(comparisons.model == model) & (comparisons.dataset == dataset)]
    best = best_answer(summary, comparisons, model, dataset).headline
    where = f"{model} on {dataset}; lowest NLL: {best}"
    return {
        "name": dataset,
        "anchor": anchor,
        "pictures": _pictures(figures, f"{model}/{dataset}/", DATASET_PICTURES | _sweeps(figures), where),
        "matrix": _pictures(figures, f"{model}/{dataset}/", PAIR_PICTURES, where),
        "pairs": pairs_table(compared, colours) if len(compared) else None,
    }


DATASET_PICTURES = {
    "perplexity_bits": "Lower and further left is better. For every method off the grey line, one on it has a lower "
    "perplexity with no more bits. An arrow: off the scale.",
    "delta_nll": "Further left is better; an arrow: off the scale. The shades are the quality bands by rise of "
    f"perplexity, from green to red: {BANDS}.",
}


def _sweeps(figures: dict[str, str]) -> dict[str, str]:
    """The sweeps' figures and what each shows."""
    names = dict.fromkeys(key.rsplit("/", 1)[1] for key in figures if "/sweep-" in key)
    return {name: f"The methods that {name.removeprefix('sweep-')} makes of its list of values." for name in names}


PAIR_PICTURES = {
    "pairs": "Read along a row: blue means that the row's method has the lower NLL. Only differences whose 95 % "
    "interval excludes 0 have a colour."
}
MODEL_PICTURES = {
    "error_by_layer": "Error of a linear's output over its size, tr(DHDᵀ)/tr(WHWᵀ) with D the change of W, on "
    "calibration inputs.",
    "error_by_kind": "The same error by kind of linear, over all layers; the best method on top.",
    "alpha_by_layer": "What the search chose: the inputs are scaled by salience^α before rounding.",
}
CHECK_PICTURES = {
    "check_mse": "Left of 0 PRAQ's choice of kept channels errs less, right of it AWQ's; grey: no difference shown."
}


def _pictures(figures: dict[str, str], prefix: str, captions: dict[str, str], where: str) -> list[Picture]:
    """Those of the figures that exist."""
    return [
        Picture(_data_uri("image/svg+xml", figures[prefix + name]), f"{name.replace('_', ' ')}: {where}. {text}", text)
        for name, text in captions.items()
        if prefix + name in figures
    ]


def _datasets(summary: pd.DataFrame, config: dict[str, Any], model: str) -> list[str]:
    """The model's data sets in the order of the study, then of the summary."""
    present = list(dict.fromkeys(summary.dataset[summary.model == model]))
    wanted = config.get("study", {}).get("datasets", [])
    wanted = list(config.get("datasets", {})) if wanted == "all" else wanted
    return sorted(present, key=lambda name: wanted.index(name) if name in wanted else len(wanted))


def _measured(summary: pd.DataFrame) -> list[str]:
    """What each data set's numbers were measured on, a line each."""
    return [
        f"{model} on {dataset}: {int(row.tokens):,} tokens in {int(row.sequences):,} sequences (protocol "
        f"{row.protocol}, at most {int(row.seq_len):,} tokens each); KL and top-1 over "
        f"{number(row.kl_tokens, 0)} tokens"
        for (model, dataset), rows in summary.groupby(["model", "dataset"], sort=False)
        for row in [next(rows.itertuples())]
    ]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _csv(frame: pd.DataFrame) -> str:
    return _data_uri("text/csv", frame.to_csv(index=False))


def _data_uri(kind: str, text: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


def _library() -> dict[str, Any]:
    """DataTables as itables bundles it: the module as a data URI, and its style sheet."""
    from itables import options

    script = Path(options.dt_bundle)
    style = script.with_suffix(".css").read_text(encoding="utf-8")
    return {"module": _data_uri("text/javascript", script.read_text(encoding="utf-8")), "style": style}
