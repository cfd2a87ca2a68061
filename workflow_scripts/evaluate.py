"""Evaluates one quantised checkpoint on one data set, or sums up the shards of that."""

from pathlib import Path

from quant.checkpoints import stored
from quant.evaluation.record import Quantised, Subject, run, sum_shards
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    stored.check(Path(snakemake.input.config).parent)
    given, params = snakemake.input, snakemake.params
    subject = Subject.of(snakemake.wildcards, given, params)
    side = Quantised(given.reference, given.original, given.record, params.recipe)
    if given.parts:
        sum_shards(subject, side, given.parts, (), snakemake.output[0])
    else:
        run(subject, side, snakemake.output[0])
