"""Evaluates one quantised checkpoint on one data set."""

from pathlib import Path

from quant.checkpoints import stored
from quant.evaluation.record import run
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    stored.check(Path(snakemake.input.config).parent)
    run(
        snakemake.input.config,
        snakemake.input.tokens,
        snakemake.params.dataset,
        snakemake.params.compute,
        dict(snakemake.wildcards),
        snakemake.output[0],
        reference_in=snakemake.input.reference,
        original=snakemake.input.original,
        record=snakemake.input.record,
        model_record=snakemake.input.model,
        recipe=snakemake.params.recipe,
    )
