"""The calibration text → token ids."""

from pathlib import Path

from quant.data.texts import tokenize
from quant.models.conversion.record import model_record
from quant.workflow.job import job

with job(snakemake.log[0]):
    spec = snakemake.params.spec
    seed = spec["seed"] if spec["shuffle"] else None
    checkpoint = Path(snakemake.input.config).parent
    tokenize(
        checkpoint,
        model_record(snakemake.input.model)["fingerprint"],
        spec,
        spec["n_calib"],
        seed,
        "calibration",
        snakemake.output[0],
        f"n_calib: {spec['n_calib']}{' (the default)' * snakemake.params.by_default}",
    )
