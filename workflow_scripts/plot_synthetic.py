"""The figure of the "loud silence" benchmark."""

from quant.files.artifacts import read_json
from quant.report.figures import preactivations, study
from quant.workflow.job import job

with job(snakemake.log[0]):
    summary = read_json(snakemake.input[0])
    drawn = preactivations.synthetic(summary)
    study.save(drawn, snakemake.output[0], {"versions": summary["versions"], "options": summary["options"]})
