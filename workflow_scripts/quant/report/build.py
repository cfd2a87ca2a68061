"""The report's page: a study in, one HTML text out."""

import json
import math
from pathlib import Path
from typing import Any

import jinja2
import yaml

from quant.comparison.measures import MEASURES
from quant.comparison.numbers import duration, number, percent
from quant.comparison.verdicts import ORIGINAL, increase, quality
from quant.report.page import csv_uri, data_uri, json_uri
from quant.report.sections.models import model_section
from quant.report.sections.questions import answer_sections
from quant.report.study import Study
from quant.report.tables import DEFINITIONS, recipes_table, steps_tables, summary_table
from quant.report.texts import text_lines

TEMPLATES = Path(__file__).parents[2] / "templates"


def build(study: Study) -> str:
    """The report as one HTML text."""
    recipes, shared = recipes_table(study.recipes, study.colours)
    questions = answer_sections(study.answers, study.figures, study.colours)
    steps = None if study.steps is None or study.steps.empty else study.steps
    tables = {"summary.csv": study.summary, "comparisons.csv": study.comparisons, "linears.csv": study.linears}
    page = {
        "models": [model_section(study, model, i) for i, model in enumerate(study.models)],
        "questions": [section for section in questions if not section.code],
        "unasked": [section for section in questions if section.code],
        "sections": study.sections,
        "missing": study.missing,
        "n_pairs": len(study.comparisons),
        "by": MEASURES[study.by].words,
        "summary": summary_table(study.summary, study.colours, study.by),
        "definitions": DEFINITIONS,
        "measured": [*text_lines(study.summary), *_bands(study)],
        "recipes": recipes,
        "shared": shared,
        "config": yaml.safe_dump(study.config, sort_keys=False, allow_unicode=True, width=110),
        "written": None if study.written is None else _yaml_uri(study.written),
        "versions": study.provenance.get("versions", {}),
        "facts": {key: _plain(value) for key, value in study.provenance.items() if key != "versions"},
        "command": study.command,
        "adding": study.adding,
        "citation": citation(study.models, study.provenance),
        "steps": None if steps is None else steps_tables(steps),
        "total": "" if steps is None else duration(steps.seconds.sum()),
        "peak": 0 if steps is None else steps.max_rss_mb.max(),
        "downloads": [
            *((name, csv_uri(frame)) for name, frame in (tables | study.sources).items() if len(frame)),
            *([("comparison_results.json", json_uri(study.answers))] if study.answers else []),
        ],
        "library": _library(),
    }
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


def _bands(study: Study) -> list[str]:
    """How far the original's own perplexity is known, beside bands of its rise; and where a band tells none apart."""
    lines = []
    for (model, dataset), rows in study.summary.groupby(["model", "dataset"], sort=False):
        for row in rows[rows.method == ORIGINAL].itertuples():
            low, high = math.exp(row.nll_low), math.exp(min(row.nll_high, 700))
            known = f"{number(row.ppl, 2)} [{number(low, 2)}, {number(high, 2)}] (95 %, over its sequences)"
            lines.append(
                f"{model} on {dataset}: the original's own perplexity is {known}, known to "
                f"{percent(high / row.ppl - 1)}; a rise is paired by sequence and far surer than that, but which band "
                "it falls in is a matter of this text too"
            )
        found = {quality(increase(row)) for row in rows[rows.method != ORIGINAL].itertuples()}
        if len(found) == 1 and len(rows) > 2:
            lines.append(f"{model} on {dataset}: every method is {found.pop()}, so the bands tell none apart")
    return lines


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _library() -> dict[str, Any]:
    """DataTables as itables bundles it: the module as a data URI, and its style sheet."""
    from itables import options

    script = Path(options.dt_bundle)
    style = script.with_suffix(".css").read_text(encoding="utf-8")
    return {"module": data_uri("text/javascript", script.read_text(encoding="utf-8")), "style": style}
