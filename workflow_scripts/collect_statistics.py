"""Calibration statistics of every linear, in one pass."""

from quant.calibration.material import Material
from quant.calibration.statistics import collect
from quant.models.compute import Compute
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    material = Material.of(snakemake.input.model, snakemake.input.tokens, snakemake.params.spec)
    out = [snakemake.output[name] for name in ("channels", "moments")]
    Compute.of(snakemake.params.compute, material.checkpoint).halving(
        lambda compute: collect(material, *out, compute, snakemake.output.preactivations, snakemake.params.moments_gb),
        material.tokens.sequences,
    )
