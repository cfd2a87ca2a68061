"""The report's page: data frames, answers, SVG texts and the configuration in, one HTML text out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from quant.comparison.answers import NO_ANSWER
from quant.comparison.pairs import full_words
from quant.comparison.verdicts import (
    ORIGINAL,
    best_answer,
    best_by_bits,
    check_answer,
    damping_lines,
    increase,
    quality,
    ranked,
    recipe_of,
)
from quant.report.page import Answer, Picture, Section, csv_uri, data_uri, duration, json_uri, number, percent
from quant.report.sections.questions import answer_sections
from quant.report.tables import BANDS, DEFINITIONS, check_table, pairs_table, recipes_table, steps_tables, summary_table

TEMPLATES = Path(__file__).parents[2] / "templates"


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
    sections: Sequence[Section] = (),
    answers: dict[str, list[dict[str, Any]]] | None = None,
    picks: dict[str, Answer] | None = None,
    sources: dict[str, pd.DataFrame] | None = None,
    written: dict[str, Any] | None = None,
    missing: list[dict[str, str]] | None = None,
) -> str:
    """The report as one HTML text.

    figures: SVG text by the key that `figures.draw` and `question_figures.draw` give it; sections: of analyses;
    answers: of the research questions by model; picks: what to deploy, by model, for the first screen; sources: more
    tables to download, by file name; written: the configuration as the user wrote it, to run it again.
    missing: model, method and reason of those that failed.
    """
    models = list(dict.fromkeys(summary.model))
    recipes, shared = recipes_table(summary, colours)
    answers = answers or {}
    downloads = {"summary.csv": summary, "comparisons.csv": comparisons, "linears.csv": layers} | (sources or {})
    page = {
        "models": [
            _model(model, i, summary, comparisons, figures, layers, config, colours,
                   (checks or {}).get(model), channels, answers.get(model, []), (picks or {}).get(model))
            for i, model in enumerate(models)
        ],
        "questions": answer_sections(answers, figures, colours),
        "sections": sections,
        "missing": missing or [],
        "n_pairs": len(comparisons),
        "summary": summary_table(summary, colours),
        "definitions": DEFINITIONS,
        "measured": _measured(summary),
        "recipes": recipes,
        "shared": shared,
        "config": yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=110),
        "written": None if written is None else _yaml_uri(written),
        "versions": provenance.get("versions", {}),
        "facts": {key: _plain(value) for key, value in provenance.items() if key != "versions"},
        "command": command,
        "citation": citation(models, provenance),
        "steps": None if steps is None or steps.empty else steps_tables(steps),
        "total": "" if steps is None or steps.empty else duration(steps.seconds.sum()),
        "peak": 0 if steps is None or steps.empty else steps.max_rss_mb.max(),
        "downloads": [
            *((name, csv_uri(frame)) for name, frame in downloads.items() if len(frame)),
            *([("comparison_results.json", json_uri(answers))] if answers else []),
        ],
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


def citation(models: list[str], provenance: dict[str, Any]) -> str:
    """What to write where this report is cited: the models, the code, the tokens and the versions that made it."""
    versions = ", ".join(f"{name} {version}" for name, version in provenance.get("versions", {}).items())
    made = [f"{key.replace('_', ' ')} {_plain(value)}" for key, value in provenance.items() if key != "versions"]
    return f"Quantisation report on {', '.join(models)}: {'; '.join([*made, versions])}."


def _yaml_uri(written: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(written))
    return data_uri("application/yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110))


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
    answered: list[dict[str, Any]],
    pick: Answer | None,
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
        "plain": plain_words(best, summary[(summary.model == model) & (summary.dataset == datasets[0])]),
        "praq": praq_words(answered, best),
        "pick": pick,
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
    return [*facts, ("bits/weight", number(row.bits_per_weight, 2)), ("recipe", full_words(recipe_of(row)))]


PRAQ_WORDS = {
    "first": "Yes",
    "second": "No, it made it worse",
    "mixed": "It depends",
    "no difference shown": "No difference shown",
    NO_ANSWER: "Not asked",
}


def praq_words(answered: list[dict[str, Any]], rows: pd.DataFrame) -> dict[str, Any]:
    """Whether PRAQ helped, for a reader in a hurry: a word or two, the verdict, and the pairs behind it."""
    one = next((one for one in answered if one["anchor"] == "praq"), None)
    if one is None:
        return {"short": PRAQ_WORDS[NO_ANSWER], "verdict": "", "plain": "", "lines": []}
    ppl = dict(zip(rows.method, rows.ppl, strict=True))
    against = [
        f"{number(ppl[row['first']], 2)} ({row['first']}) against {number(ppl[row['second']], 2)} ({row['second']})"
        for row in one["pairs"]
        if row["dataset"] == one["pairs"][0]["dataset"] and {row["first"], row["second"]} <= ppl.keys()
    ]
    plain = f"Perplexity {'; '.join(against[:3])}{'; …' if len(against) > 3 else ''}." if against else ""
    return {"short": PRAQ_WORDS[one["outcome"]], "verdict": one["verdict"], "plain": plain, "lines": one["lines"]}


def plain_words(best: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What the best method costs, for a reader who knows none of this."""
    original = rows[rows.method == ORIGINAL]
    if best.empty or original.empty:
        return ""
    row, before = next(best.itertuples()), next(original.itertuples())
    smaller = before.bits_per_weight / row.bits_per_weight
    stores = "stores" if row.storage == "packed" else "would store"
    worse = "worse" if row.ppl > before.ppl else "no worse"
    return (
        f"It {stores} a weight in {number(row.bits_per_weight, 2)} bits instead of {number(before.bits_per_weight, 0)} "
        f"({number(smaller, 1)} times smaller) and predicts the next word of unseen text {worse}: perplexity, "
        f"where lower is better, goes from {number(before.ppl, 2)} to {number(row.ppl, 2)} "
        f"({percent(increase(row))}, {quality(increase(row))})."
    )


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
    "size_delta_nll": "Lower and further left is better. The size is the checkpoint's on disk, embeddings and head "
    "included. An arrow: off the scale.",
    "delta_nll": "Further left is better; an arrow: off the scale. The shades are the quality bands by rise of "
    f"perplexity, from green to red: {BANDS}.",
}


def _sweeps(figures: dict[str, str]) -> dict[str, str]:
    """The sweeps' figures and what each shows."""
    names = dict.fromkeys(key.rsplit("/", 1)[1] for key in figures if "/sweep-" in key)
    return {name: f"The methods that {name.removeprefix('sweep-')} makes of its list of values." for name in names}


PAIR_PICTURES = {
    "pairs": "Read along a row: blue means that the row's method has the lower NLL. Only differences that are "
    "shown after correction for all pairs have a colour."
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
        Picture(data_uri("image/svg+xml", figures[prefix + name]), f"{name.replace('_', ' ')}: {where}. {text}", text)
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


def _library() -> dict[str, Any]:
    """DataTables as itables bundles it: the module as a data URI, and its style sheet."""
    from itables import options

    script = Path(options.dt_bundle)
    style = script.with_suffix(".css").read_text(encoding="utf-8")
    return {"module": data_uri("text/javascript", script.read_text(encoding="utf-8")), "style": style}
