"""Answers of one checkpoint, quantised or the original, to one task."""

from pathlib import Path

from quant.checkpoints import stored
from quant.evaluation.tasks import run
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    quantised = snakemake.params.recipe is not None
    if quantised:
        stored.check(Path(snakemake.input.config).parent)
    run(
        snakemake.input.config,
        snakemake.input.task,
        snakemake.params.spec,
        snakemake.params.compute,
        dict(snakemake.wildcards),
        snakemake.output[0],
        snakemake.input.model,
        snakemake.input.record if quantised else None,
        snakemake.params.recipe,
    )
