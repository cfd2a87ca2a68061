"""One self-contained HTML page."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from quant.comparison.pick import choose
from quant.files.artifacts import read_json, versions, write_text
from quant.files.csv_tables import read_table
from quant.report.build import build
from quant.report.figures.style import method_colours
from quant.report.page import Section
from quant.report.sections import layer, preactivations, synthetic, tasks, words
from quant.report.steps import read_benchmarks, with_plan
from quant.report.study import Study
from quant.workflow.job import job


def asked(colours: dict[str, str]) -> Iterator[Section]:
    """A section of tasks for each model, where the study asks any."""
    if not snakemake.input.tasks:
        return
    table, pairs = map(read_table, snakemake.input.tasks)
    models, methods = (snakemake.params.config["study"][key] for key in ("models", "methods"))
    for i, (model, path) in enumerate(zip(models, snakemake.input.task_figures, strict=True)):
        yield tasks.tasks(
            f"-{i}" if len(models) > 1 else "",
            table[table.model == model],
            pairs[pairs.model == model],
            colours,
            Path(path).read_text(encoding="utf-8"),
            len(methods),
        )


def in_words(summary: pd.DataFrame, colours: dict[str, str]) -> Iterator[Section]:
    """A section of what is written for each model, where the study has it; summary: of all data sets."""
    if not snakemake.input.words:
        return
    table, examples = read_table(snakemake.input.words[0]), read_json(snakemake.input.words[1])["examples"]
    models, dataset = (snakemake.params.config["study"][key] for key in ("models", "datasets"))
    for i, model in enumerate(models):
        yield words.words(
            f"-{i}" if len(models) > 1 else "",
            table[table.model == model],
            [one for one in examples if one["model"] == model],
            summary[(summary.model == model) & (summary.dataset == dataset[0])],
            colours,
        )


def analyses() -> Iterator[Section]:
    """A section for each analysis of each model, in the order of the study; the layers' follow their model's."""
    records = list(map(read_json, snakemake.input.preactivations))
    for i, record in enumerate(records):
        place = f"-{i}" if len(records) > 1 else ""
        folder = Path(snakemake.input.preactivations[i]).parent
        index = read_json(folder / "layers.json")
        yield preactivations.preactivations(
            place,
            read_table(folder / "preactivations.csv"),
            record,
            (folder / "preactivations.svg").read_text(encoding="utf-8"),
            [(entry["layer"], (folder / entry["file"]).read_bytes()) for entry in index],
        )
        for path in map(Path, snakemake.input.dives):
            if (dive := read_json(path))["model"] == record["model"]:
                tables = (read_table(path.with_name(name)) for name in ("agreement.csv", "channel_statistics.csv"))
                pictures = ("correlation_awq_praq.png", "negative_channels_detailed.png")
                drawn = (path.with_name(name).read_bytes() for name in pictures)
                yield layer.deep_dive(place, dive, *tables, *drawn)
    figure = Path(snakemake.input.synthetic_figure[0]).read_text(encoding="utf-8")
    yield synthetic.synthetic(read_json(snakemake.input.synthetic), figure)


with job(snakemake.log[0]):
    config = snakemake.params.config
    summary = read_table(snakemake.input.summary)
    checks = {check["model"]: check for check in map(read_json, snakemake.input.checks)}
    drawn = {
        name: Path(path).read_text(encoding="utf-8")
        for name, path in zip(snakemake.params.figures, snakemake.input.figures, strict=True)
    }
    provenance = {
        "versions": versions(),
        "code": snakemake.params.code,
        "seed": config["calibration"]["seed"],
        "token_fingerprints": ", ".join(sorted(set(summary["token_fingerprint"]))),
    }
    comparisons = read_table(snakemake.input.comparisons)
    colours = method_colours(snakemake.params.methods)
    choices = [choose(summary, comparisons, options) for options in snakemake.params.choose]
    study = Study(
        summary,
        comparisons,
        linears=read_table(snakemake.input.linears),
        figures=drawn,
        colours=colours,
        config=config,
        provenance=provenance,
        command=snakemake.params.command,
        adding=snakemake.params.adding,
        written=snakemake.params.written,
        checks=checks,
        channels=pd.concat(map(read_table, snakemake.input.channels)) if checks else None,
        answers=read_json(snakemake.input.answers)["models"],
        choices={choice.model: choice for choice in choices},
        steps=with_plan(
            read_benchmarks(Path(snakemake.output[0]).parent / "benchmarks", config["study"]),
            next(map(Path, snakemake.input.plan), None),
        ),
        sections=[*asked(colours), *in_words(summary, colours), *analyses()],
        sources={
            "sensitivity.csv": read_table(snakemake.input.sensitivity),
            "rounding_stats.csv": read_table(snakemake.input.rounding),
            "learnt.csv": read_table(snakemake.input.learnt),
            "profiles.csv": read_table(snakemake.input.profiles),
            "contrasts.csv": read_table(snakemake.input.contrasts),
        }
        | {Path(path).name: read_table(path) for path in (*snakemake.input.tasks, *snakemake.input.words[:1])},
        caveats={Path(path).parents[1].name: read_json(path).get("caveat", "") for path in snakemake.input.converted},
        missing=snakemake.params.missing,
    )
    write_text(snakemake.output[0], build(study))
