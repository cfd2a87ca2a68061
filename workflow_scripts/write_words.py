"""What one checkpoint, quantised or the original, writes behind a task's contexts."""

from pathlib import Path

from quant.checkpoints import stored
from quant.evaluation.greedy import run
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    quantised = snakemake.params.recipe is not None
    if quantised:
        stored.check(Path(snakemake.input.config).parent)
    run(
        snakemake.input.config,
        snakemake.input.task,
        snakemake.params.words,
        snakemake.params.compute,
        dict(snakemake.wildcards),
        snakemake.output[0],
        snakemake.input.model,
        snakemake.input.record if quantised else None,
        snakemake.params.recipe,
    )
