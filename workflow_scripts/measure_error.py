"""The exact error of every linear of a written checkpoint."""

from pathlib import Path

import pandas as pd

from quant.data.tokens import fingerprint_in
from quant.evaluation.exact_error import measure
from quant.files.artifacts import mark, read_json, require
from quant.files.csv_tables import write_table
from quant.files.tensorfile import opened
from quant.models.conversion.record import model_record
from quant.runtime.compute import device
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    record = read_json(snakemake.input.record)
    made, model = record["provenance"], model_record(snakemake.input.model)["fingerprint"]
    require(snakemake.input.record, made, recipe=snakemake.params.recipe, model_fingerprint=model)
    for path in (snakemake.input.weights, snakemake.input.folds):
        with opened(path) as file:
            require(path, {"record": file.info("provenance")}, record=made)
    calibration = fingerprint_in(snakemake.input.tokens)
    with opened(snakemake.input.moments) as file:
        require(file.path, file.info("provenance"), model_fingerprint=model, token_fingerprint=calibration)
    end_loss = snakemake.input.get("end_loss")
    if end_loss is not None:
        with opened(end_loss) as file:
            require(file.path, file.info("provenance"), model_fingerprint=model, token_fingerprint=calibration)
    rows = measure(
        Path(snakemake.input.original),
        Path(snakemake.input.config).parent,
        Path(snakemake.input.folds),
        Path(snakemake.input.moments),
        record,
        snakemake.params.linears,
        device(snakemake.params.device),
        None if end_loss is None else Path(end_loss),
    )
    table = pd.DataFrame(rows)
    for name in ("method", "model"):
        table.insert(0, name, snakemake.wildcards[name])
    write_table(snakemake.output[0], table.assign(checkpoint=mark(made)))
