"""Evaluates the unquantised model and keeps its hidden states, or sums up the shards of that."""

from quant.evaluation.record import Original, Subject, run, sum_shards
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    given, params, out = snakemake.input, snakemake.params, snakemake.output
    subject, side = Subject.of(snakemake.wildcards, given, params), Original(out.reference, params.implausible)
    if given.parts:
        sum_shards(subject, side, given.parts, given.references, out.evaluation)
    else:
        run(subject, side, out.evaluation)
