"""Quantises one model by a library, in its own environment, on the common calibration tokens."""

from pathlib import Path

from quant.files.artifacts import write_json
from quant.methods.library import quantize_library
from quant.methods.source import Output, Source, provenance_of
from quant.models.conversion.record import model_record
from quant.runtime.compute import batch_tokens, device
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    given, out, params = snakemake.input, snakemake.output, snakemake.params
    where = device(params.compute["device"])
    model = model_record(given.model)
    result = quantize_library(
        Source.of(Path(given.config).parent, model),
        Output.of(out),
        Path(given.tokens),
        Path(given.environment).parent,
        provenance_of(model, params.recipe, snakemake.wildcards),
        where,
        batch_tokens(params.compute["batch_tokens"], where),
    )
    write_json(out.record, result)
