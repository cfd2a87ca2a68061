"""Statistics of every linear's pre-activations, and which of its channels are dead, risky or critical."""

from pathlib import Path

import pandas as pd

from quant.analysis.preactivations import analyse, opened
from quant.files.artifacts import require, versions, write_json
from quant.files.csv_tables import write_table
from quant.models.conversion.record import model_record
from quant.workflow.job import job

with job(snakemake.log[0]):
    fingerprint = model_record(snakemake.input.model)["fingerprint"]
    checkpoint = Path(snakemake.input.config).parent
    model, thresholds = snakemake.wildcards.model, snakemake.params.thresholds
    with opened(checkpoint, Path(snakemake.input.channels), Path(snakemake.input.preactivations)) as files:
        table = pd.DataFrame(analyse(files, snakemake.params.linears, thresholds))
        calibration = files.channels.info("provenance")
        require(files.channels.path, calibration, model_fingerprint=fingerprint)
        sampled = len(files.sample(files.linears()[0]))
    write_table(snakemake.output.table, table.assign(model=model))
    provenance = {
        "versions": versions(),
        "token_fingerprint": calibration["token_fingerprint"],
        "model_fingerprint": fingerprint,
    }
    record = {"model": model, "thresholds": thresholds, "tokens": calibration["tokens"], "sampled_tokens": sampled}
    write_json(snakemake.output.record, record | {"provenance": provenance})
