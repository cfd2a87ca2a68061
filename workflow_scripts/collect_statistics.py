"""Calibration statistics of every linear, in one pass."""

from pathlib import Path

from quant import tokens
from quant.artifacts import read_json, versions
from quant.compute import batch_tokens, device, dtype
from quant.job import job
from quant.statistics import collect

with job(snakemake.log[0], snakemake.threads):
    compute = snakemake.params.compute
    where = device(compute["device"])
    checkpoint = Path(snakemake.input.config).parent
    collect(
        checkpoint,
        tokens.load(snakemake.input.tokens),
        snakemake.output.channels,
        snakemake.output.moments,
        where,
        dtype(compute["dtype"], where, checkpoint),
        batch_tokens(compute["batch_tokens"], where),
        {"model_fingerprint": read_json(snakemake.input.model)["fingerprint"], "versions": versions()},
        snakemake.output.preactivations,
    )
