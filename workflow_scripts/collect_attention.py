"""What errors of a linear's outputs do to the weights of attention."""

import re

from quant.calibration.attention_moments import collect_attention_rows
from quant.calibration.material import Material
from quant.runtime.compute import Compute
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    material = Material.of(snakemake.input.model, snakemake.input.tokens, snakemake.params.spec)
    seed = int(re.search(r"-s(\d+)$", snakemake.wildcards.calibration)[1])
    compute = Compute.of(snakemake.params.compute, material.checkpoint)
    collect_attention_rows(material, snakemake.output[0], seed, compute)
