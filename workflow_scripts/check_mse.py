"""Keep half of one layer's output channels by AWQ's or PRAQ's score: which choice leaves the smaller error?"""

import json
from pathlib import Path

import pandas as pd

from quant.analysis.layer_mse import check
from quant.data import tokens
from quant.files import tensorfile
from quant.files.artifacts import require, versions, write_json
from quant.files.csv_tables import write_table
from quant.files.tensorfile import opened
from quant.models.conversion.record import model_record
from quant.models.structure.depth import layer_at, layer_words
from quant.runtime.compute import Compute
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    options = snakemake.params.options
    checkpoint = Path(snakemake.input.config).parent
    record = model_record(snakemake.input.model)
    layers = 1 + max(record["linears"].values())
    layer = layer_at(options["layer"], layers)
    made_from = {"model_fingerprint": record["fingerprint"]}
    heldout = tokens.load(snakemake.input.tokens, **made_from)
    calibration = tokens.fingerprint_in(snakemake.input.calibration)
    with opened(snakemake.input.channels) as file:
        require(file.path, file.info("provenance"), token_fingerprint=calibration, **made_from)
    heldout = heldout._replace(sequences=heldout.sequences[: options["n_samples"]])
    channels, linears, moments, of_experts = Compute.of(snakemake.params.compute, checkpoint).halving(
        lambda compute: check(
            checkpoint,
            Path(snakemake.input.channels),
            heldout,
            layer,
            options,
            snakemake.params.linears,
            compute,
            snakemake.params.comparison["resamples"],
            snakemake.params.comparison["seed"],
        ),
        heldout.sequences,
    )
    model = snakemake.wildcards.model
    write_table(snakemake.output.channels, pd.DataFrame(channels).assign(model=model))
    provenance = {
        "options": options,
        "seed": snakemake.params.comparison["seed"],
        "versions": versions(),
        "token_fingerprint": heldout.fingerprint,
    } | made_from
    metadata = {"reads": json.dumps({name: name for name in moments}), "provenance": json.dumps(provenance)}
    tensorfile.save(snakemake.output.moments, moments, metadata)
    verdict = {"model": model, "layer": layer, "words": layer_words(options["layer"], layer, layers)}
    verdict |= {"keep_ratio": options["keep_ratio"], "linears": linears, "left_out": of_experts}
    verdict |= {"dataset": snakemake.params.dataset, "tokens": heldout.count, "provenance": provenance}
    write_json(snakemake.output.verdict, verdict)
