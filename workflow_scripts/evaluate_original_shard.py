"""Evaluates the unquantised model on a shard of a data set's sequences and keeps its hidden states."""

from quant.data.tokens import Shard
from quant.evaluation.record import Original, Subject, run
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    names, out = snakemake.wildcards, snakemake.output
    subject = Subject.of(names, snakemake.input, snakemake.params)
    run(subject, Original(out.reference), out.evaluation, Shard(int(names.shard), int(names.shards)))
