"""Evaluates one quantised checkpoint on one data set."""

from pathlib import Path

from quant.checkpoints import stored
from quant.evaluation.record import Quantised, Task, run
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    stored.check(Path(snakemake.input.config).parent)
    params, names = snakemake.params, snakemake.wildcards
    task = Task(
        names.model,
        names.method,
        names.dataset,
        snakemake.input.config,
        snakemake.input.tokens,
        params.dataset,
        params.compute,
        snakemake.input.model,
    )
    side = Quantised(snakemake.input.reference, snakemake.input.original, snakemake.input.record, params.recipe)
    run(task, side, snakemake.output[0])
