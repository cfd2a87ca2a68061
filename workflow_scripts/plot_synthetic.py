"""The figure of the "loud silence" benchmark."""

from quant.files.artifacts import read_json
from quant.report.figures.style import save
from quant.report.figures.synthetic import synthetic
from quant.workflow.job import job

with job(snakemake.log[0]):
    summary = read_json(snakemake.input[0])
    drawn = synthetic(summary)
    save(drawn, snakemake.output[0], {"versions": summary["versions"], "options": summary["options"]})
