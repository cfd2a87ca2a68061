"""Evaluates the unquantised model and keeps its hidden states."""

from quant.evaluation.record import Original, Task, run
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    params, names = snakemake.params, snakemake.wildcards
    task = Task(
        names.model,
        "original",
        names.dataset,
        snakemake.input.config,
        snakemake.input.tokens,
        params.dataset,
        params.compute,
        snakemake.input.model,
    )
    run(task, Original(snakemake.output.reference, params.implausible), snakemake.output.evaluation)
