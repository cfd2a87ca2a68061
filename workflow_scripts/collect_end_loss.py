"""Second moments weighted by what an error costs the model's predictions, or those of the outputs themselves."""

import re

from quant.calibration.end_loss import collect_end_loss
from quant.calibration.material import Material
from quant.calibration.row_moments import collect_row_moments
from quant.runtime.compute import Compute
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    material = Material.of(snakemake.input.model, snakemake.input.tokens, snakemake.params.spec)
    parts, seed = snakemake.wildcards.parts, int(re.search(r"-s(\d+)$", snakemake.wildcards.calibration)[1])
    Compute.of(snakemake.params.compute, material.checkpoint).halving(
        lambda compute: (
            collect_row_moments(material, snakemake.output[0], seed, compute)
            if parts == "rows"
            else collect_end_loss(material, snakemake.output[0], int(parts), seed, compute)
        ),
        material.tokens.sequences,
    )
