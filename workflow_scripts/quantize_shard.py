"""Quantises some of a model's blocks by one recipe."""

from quant.data.tokens import Shard
from quant.methods.block_shards import Part, quantize_shard
from quant.methods.job import Job
from quant.runtime.compute import device
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    work = Job.of(snakemake.input, snakemake.params, snakemake.wildcards)
    shard = Shard(int(snakemake.wildcards.shard), int(snakemake.wildcards.shards))
    given = work.statistics, work.recipe, device(snakemake.params.device), work.provenance
    quantize_shard(work.source, Part(*snakemake.output), shard, *given)
