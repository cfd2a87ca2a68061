"""Every method's exact error on the held-out inputs of the checked layer's linears, from their second moments."""

from pathlib import Path

import pandas as pd

from quant.evaluation.exact_error import measure
from quant.files import tensorfile
from quant.files.artifacts import read_json, require
from quant.files.csv_tables import write_table
from quant.runtime.compute import device
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    with tensorfile.opened(snakemake.input.moments) as file:
        checked, model = set(file.info("reads")), file.info("provenance")["model_fingerprint"]
    files = (snakemake.input.weights, snakemake.input.folds, snakemake.input.records)
    rows = []
    for weights, folds, path in zip(*files, strict=True):
        record = read_json(path)
        require(path, record["provenance"], model_fingerprint=model)
        record["linears"] = [row for row in record["linears"] if row["linear"] in checked]
        found = measure(
            Path(snakemake.input.original),
            Path(weights).parent,
            Path(folds),
            Path(snakemake.input.moments),
            record,
            snakemake.params.linears,
            device(snakemake.params.device),
        )
        names = {"model": snakemake.wildcards.model, "method": record["provenance"]["method"]}
        rows += [
            names | {key: row[key] for key in ("linear", "layer", "kind", "mse", "relative_error")} for row in found
        ]
    write_table(snakemake.output[0], pd.DataFrame(rows))
