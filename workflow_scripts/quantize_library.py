"""Quantises one model by a library, in its own environment, on the common calibration tokens."""

from pathlib import Path

from quant.files.artifacts import write_json
from quant.methods.library import quantize_library
from quant.models.compute import batch_tokens, device
from quant.models.record import model_record
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    where = device(snakemake.params.compute["device"])
    result = quantize_library(
        Path(snakemake.input.config).parent,
        Path(snakemake.output.config).parent,
        Path(snakemake.output.folds),
        Path(snakemake.input.tokens),
        Path(snakemake.input.environment).parent,
        model_record(snakemake.input.model),
        snakemake.params.recipe,
        where,
        batch_tokens(snakemake.params.compute["batch_tokens"], where),
        dict(snakemake.wildcards),
    )
    write_json(snakemake.output.record, result)
