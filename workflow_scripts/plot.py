"""Every figure of the report, as SVG."""

from pathlib import Path

from quant.comparison.pick import choose
from quant.files.artifacts import read_json, versions
from quant.files.csv_tables import read_table
from quant.report.figures import questions
from quant.report.figures.draw import draw
from quant.report.figures.style import method_colours, save
from quant.workflow.job import job

with job(snakemake.log[0]):
    summary = read_table(snakemake.input.summary)
    checks = {check["model"]: check for check in map(read_json, snakemake.input.checks)}
    colours = method_colours(snakemake.params.methods)
    answers = read_json(snakemake.input.answers)["models"]
    comparisons = read_table(snakemake.input.comparisons)
    choices = [choose(summary, comparisons, options) for options in snakemake.params.choose]
    drawn = draw(
        summary,
        comparisons,
        read_table(snakemake.input.linears),
        checks,
        colours,
        snakemake.params.sweeps,
        {(choice.model, choice.dataset): choice.method for choice in choices},
        snakemake.params.by,
        read_table(snakemake.input.profiles),
    ) | questions.draw(answers, colours)
    provenance = {"versions": versions(), "token_fingerprints": sorted(set(summary["token_fingerprint"]))}
    for name, path in zip(snakemake.params.figures, snakemake.output, strict=True):
        save(drawn[name], Path(path), provenance)
