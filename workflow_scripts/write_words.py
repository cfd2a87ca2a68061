"""What one checkpoint, quantised or the original, writes behind a task's contexts."""

from quant.evaluation.asked import Asked
from quant.evaluation.words import run
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    asked = Asked.of(snakemake.input, snakemake.params, dict(snakemake.wildcards))
    run(asked, snakemake.input.task, snakemake.params.words, snakemake.output[0])
