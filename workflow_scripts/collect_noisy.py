"""Robust-PRAQ's statistics: expectations under noise on the inputs."""

import re
from pathlib import Path

from quant.calibration.noisy import collect_noisy
from quant.data import tokens
from quant.files.artifacts import versions
from quant.models.compute import batch_tokens, device, dtype, halving
from quant.models.record import model_record
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    compute = snakemake.params.compute
    where = device(compute["device"])
    checkpoint = Path(snakemake.input.config).parent
    fingerprint = model_record(snakemake.input.model)["fingerprint"]
    ids = tokens.load(snakemake.input.tokens, spec=snakemake.params.spec, model_fingerprint=fingerprint)
    halving(
        lambda n: collect_noisy(
            checkpoint,
            ids,
            Path(snakemake.input.channels),
            snakemake.output[0],
            {
                "noise_std": float(snakemake.wildcards.noise_std),
                "n_noise_samples": int(snakemake.wildcards.n_noise_samples),
                "seed": int(re.search(r"-s(\d+)$", snakemake.wildcards.calibration)[1]),
            },
            where,
            dtype(compute["dtype"], where, checkpoint),
            n,
            {"model_fingerprint": fingerprint, "versions": versions()},
        ),
        batch_tokens(compute["batch_tokens"], where),
        ids.sequences,
    )
