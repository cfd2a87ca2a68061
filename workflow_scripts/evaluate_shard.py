"""Evaluates one quantised checkpoint on a shard of a data set's sequences."""

from pathlib import Path

from quant.checkpoints import stored
from quant.data.tokens import Shard
from quant.evaluation.record import Quantised, Subject, run
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    stored.check(Path(snakemake.input.config).parent)
    given, params, names = snakemake.input, snakemake.params, snakemake.wildcards
    side = Quantised(given.reference, given.original, given.record, params.recipe)
    run(Subject.of(names, given, params), side, snakemake.output[0], Shard(int(names.shard), int(names.shards)))
