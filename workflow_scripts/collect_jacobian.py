"""Second moments weighted by the MLP's squared local Jacobian."""

from quant.calibration.jacobian import collect_jacobian
from quant.calibration.material import Material
from quant.runtime.compute import Compute
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    material = Material.of(snakemake.input.model, snakemake.input.tokens, snakemake.params.spec)
    residual = snakemake.wildcards.jacobian == "jacobian_residual"
    Compute.of(snakemake.params.compute, material.checkpoint).halving(
        lambda compute: collect_jacobian(material, snakemake.output[0], residual, compute), material.tokens.sequences
    )
