"""One self-contained HTML page."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from quant.comparison.pick import choose
from quant.files.artifacts import read_json, versions, write_text
from quant.files.csv_tables import read_table
from quant.report import build
from quant.report.figures import study
from quant.report.page import Answer, Section
from quant.report.sections import preactivations
from quant.report.steps import read_benchmarks
from quant.workflow.job import job


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
                yield preactivations.deep_dive(place, dive, *tables, *drawn)
    figure = Path(snakemake.input.synthetic_figure[0]).read_text(encoding="utf-8")
    yield preactivations.synthetic(read_json(snakemake.input.synthetic), figure)


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
    first = {"dataset": config["study"]["datasets"][0]} | config["choose"]
    choices = [choose(summary, comparisons, first | {"model": model}) for model in config["study"]["models"]]
    page = build.build(
        summary,
        comparisons,
        read_table(snakemake.input.linears),
        drawn,
        config,
        provenance,
        snakemake.params.command,
        study.method_colours(snakemake.params.methods),
        checks=checks or None,
        channels=pd.concat(map(read_table, snakemake.input.channels)) if checks else None,
        steps=read_benchmarks(Path(snakemake.output[0]).parent / "benchmarks", config["study"]),
        sections=list(analyses()),
        answers=read_json(snakemake.input.answers)["models"],
        picks={choice.model: Answer(choice.headline, choice.lines) for choice in choices},
        sources={
            "sensitivity.csv": read_table(snakemake.input.sensitivity),
            "rounding_stats.csv": read_table(snakemake.input.rounding),
        },
        written=snakemake.params.written,
        missing=snakemake.params.missing,
    )
    write_text(snakemake.output[0], page)
