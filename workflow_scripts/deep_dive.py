"""AWQ's and PRAQ's importance of every channel of one layer, and how far they agree."""

from pathlib import Path

from quant.analysis.deep_dive import dive
from quant.analysis.preactivations import opened
from quant.files.artifacts import require, versions, write_json
from quant.files.csv_tables import write_table
from quant.models.conversion.record import model_record
from quant.models.structure.depth import layer_at, layer_words
from quant.workflow.job import job

with job(snakemake.log[0]):
    made, params = model_record(snakemake.input.model), snakemake.params
    fingerprint, layers = made["fingerprint"], 1 + max(made["linears"].values())
    layer = layer_at(snakemake.wildcards.layer, layers)
    paths = (Path(snakemake.input[key]) for key in ("channels", "preactivations"))
    with opened(Path(snakemake.input.config).parent, *paths) as files:
        tables = dive(files, layer, params.linears, params.thresholds, params.praq, params.top)
        calibration = files.channels.info("provenance")
        require(files.channels.path, calibration, model_fingerprint=fingerprint)
    provenance = {
        "versions": versions(),
        "token_fingerprint": calibration["token_fingerprint"],
        "model_fingerprint": fingerprint,
    }
    for path, table in zip((snakemake.output[key] for key in ("outputs", "inputs", "agreement")), tables, strict=True):
        write_table(path, table.assign(model=snakemake.wildcards.model, layer=layer), "%.7g")
    record = {"model": snakemake.wildcards.model, "layer": layer, "thresholds": params.thresholds, "praq": params.praq}
    record |= {"words": layer_words(snakemake.wildcards.layer, layer, layers)}
    record |= {"top": params.top, "tokens": calibration["tokens"], "provenance": provenance}
    write_json(snakemake.output.record, record)
