"""Every figure of the report, as SVG."""

from pathlib import Path

from quant import figures, question_figures
from quant.artifacts import read_json, versions
from quant.csv_tables import read_table
from quant.job import job

with job(snakemake.log[0]):
    summary = read_table(snakemake.input.summary)
    checks = {check["model"]: check for check in map(read_json, snakemake.input.checks)}
    colours = figures.method_colours(snakemake.params.methods)
    answers = read_json(snakemake.input.answers)["models"]
    drawn = figures.draw(
        summary,
        read_table(snakemake.input.comparisons),
        read_table(snakemake.input.linears),
        checks or None,
        colours,
        snakemake.params.sweeps,
    ) | question_figures.draw(answers, colours)
    provenance = {"versions": versions(), "token_fingerprints": sorted(set(summary["token_fingerprint"]))}
    for name, path in zip(snakemake.params.figures, snakemake.output, strict=True):
        figures.save(drawn[name], Path(path), provenance)
