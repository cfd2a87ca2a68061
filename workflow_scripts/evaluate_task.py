"""Answers of one checkpoint, quantised or the original, to one task."""

from quant.evaluation.asked import Asked
from quant.evaluation.tasks import run
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    asked = Asked.of(snakemake.input, snakemake.params, dict(snakemake.wildcards))
    run(asked, snakemake.input.task, snakemake.params.spec, snakemake.output[0])
