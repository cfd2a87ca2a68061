"""Robust-PRAQ's statistics: expectations under noise on the inputs."""

import re
from pathlib import Path

from quant.calibration.material import Material
from quant.calibration.noisy import collect_noisy
from quant.runtime.compute import Compute
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    material = Material.of(snakemake.input.model, snakemake.input.tokens, snakemake.params.spec)
    noise = {
        "noise_std": float(snakemake.wildcards.noise_std),
        "n_noise_samples": int(snakemake.wildcards.n_noise_samples),
        "seed": int(re.search(r"-s(\d+)$", snakemake.wildcards.calibration)[1]),
    }
    channels, out = Path(snakemake.input.channels), snakemake.output[0]
    Compute.of(snakemake.params.compute, material.checkpoint).halving(
        lambda compute: collect_noisy(material, channels, out, noise, compute), material.tokens.sequences
    )
