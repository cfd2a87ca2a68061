"""The sums of a shard of the calibration sequences."""

from quant.calibration.expert_moments import Keeping
from quant.calibration.material import Material
from quant.calibration.shards import Part, collect_shard
from quant.data.tokens import Shard
from quant.runtime.compute import Compute
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    material = Material.of(snakemake.input.model, snakemake.input.tokens, snakemake.params.spec)
    shard = Shard(int(snakemake.wildcards.shard), int(snakemake.wildcards.shards))
    part = Part(snakemake.output.sums, snakemake.output.moments)
    Compute.of(snakemake.params.compute, material.checkpoint).halving(
        lambda compute: collect_shard(material, shard, part, compute, Keeping(**snakemake.params.keeping)),
        material.tokens.sequences,
    )
