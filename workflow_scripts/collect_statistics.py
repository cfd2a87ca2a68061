"""Calibration statistics of every linear, in one pass or from shards of it."""

from quant.calibration.expert_moments import Keeping
from quant.calibration.material import Material
from quant.calibration.shards import Part, sum_shards
from quant.calibration.statistics import collect
from quant.runtime.compute import Compute
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    material = Material.of(snakemake.input.model, snakemake.input.tokens, snakemake.params.spec)
    out = [snakemake.output[name] for name in ("channels", "moments", "preactivations")]
    keeping = Keeping(**snakemake.params.keeping)
    parts = list(map(Part, snakemake.input.sums, snakemake.input.moments))
    Compute.of(snakemake.params.compute, material.checkpoint).halving(
        lambda compute: (
            sum_shards(material, parts, *out, compute, keeping)
            if parts
            else collect(material, *out[:2], compute, out[2], keeping)
        ),
        material.tokens.sequences,
    )
