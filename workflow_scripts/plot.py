"""Every figure of the report, as SVG."""

from pathlib import Path

from quant.files.artifacts import read_json, versions
from quant.files.csv_tables import read_table
from quant.report.figures import questions, study
from quant.workflow.job import job

with job(snakemake.log[0]):
    summary = read_table(snakemake.input.summary)
    checks = {check["model"]: check for check in map(read_json, snakemake.input.checks)}
    colours = study.method_colours(snakemake.params.methods)
    answers = read_json(snakemake.input.answers)["models"]
    drawn = study.draw(
        summary,
        read_table(snakemake.input.comparisons),
        read_table(snakemake.input.linears),
        checks or None,
        colours,
        snakemake.params.sweeps,
    ) | questions.draw(answers, colours)
    provenance = {"versions": versions(), "token_fingerprints": sorted(set(summary["token_fingerprint"]))}
    for name, path in zip(snakemake.params.figures, snakemake.output, strict=True):
        study.save(drawn[name], Path(path), provenance)
