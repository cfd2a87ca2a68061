"""Calibration statistics of every linear, in one pass."""

from pathlib import Path

from quant import tokens
from quant.artifacts import versions
from quant.compute import batch_tokens, device, dtype, halving
from quant.job import job
from quant.statistics import collect
from quant.tensorfile import model_record

with job(snakemake.log[0], snakemake.threads):
    compute = snakemake.params.compute
    where = device(compute["device"])
    checkpoint = Path(snakemake.input.config).parent
    fingerprint = model_record(snakemake.input.model)["fingerprint"]
    ids = tokens.load(snakemake.input.tokens, spec=snakemake.params.spec, model_fingerprint=fingerprint)
    halving(
        lambda n: collect(
            checkpoint,
            ids,
            snakemake.output.channels,
            snakemake.output.moments,
            where,
            dtype(compute["dtype"], where, checkpoint),
            n,
            {"model_fingerprint": fingerprint, "versions": versions()},
            snakemake.output.preactivations,
        ),
        batch_tokens(compute["batch_tokens"], where),
        ids.sequences,
    )
