"""Evaluates the unquantised model and keeps its hidden states."""

from quant.evaluation.record import run
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    run(
        snakemake.input.config,
        snakemake.input.tokens,
        snakemake.params.dataset,
        snakemake.params.compute,
        {**snakemake.wildcards, "method": "original"},
        snakemake.output.evaluation,
        reference_out=snakemake.output.reference,
        model_record=snakemake.input.model,
        implausible=snakemake.params.implausible,
    )
