"""Calibration statistics of every linear, in one pass."""

from pathlib import Path

from quant.calibration.statistics import collect
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
