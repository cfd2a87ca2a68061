"""Rise of the NLL when only a part of the model is quantised: a kind of linear, a layer, or the risky channels."""

from pathlib import Path

from quant.analysis import parts
from quant.data import tokens
from quant.files.artifacts import read_json, require, versions, write_json
from quant.files.tensorfile import opened
from quant.models.conversion.record import model_record
from quant.runtime.compute import Compute
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    options = snakemake.params.options
    record = read_json(snakemake.input.record)
    linears = {row["linear"]: row["layer"] for row in record["linears"]}
    made_from = {"model_fingerprint": model_record(snakemake.input.model)["fingerprint"]}
    require(snakemake.input.record, record["provenance"], **made_from)
    heldout = tokens.load(snakemake.input.tokens, **made_from)
    evaluation = read_json(snakemake.input.original)
    require(snakemake.input.original, evaluation["provenance"], evaluated_tokens=heldout.fingerprint, **made_from)
    original = evaluation["sequences"][: options["n_samples"]]
    heldout = heldout._replace(sequences=heldout.sequences[: options["n_samples"]])
    counts, chosen = {}, []
    if "risk" in options["by"]:
        with opened(snakemake.input.channels) as file:
            require(file.path, file.info("provenance"), **made_from)
        masks, counts = parts.risk_masks(Path(snakemake.input.channels), linears, snakemake.params.thresholds)
        chosen += parts.by_risk(masks, options["draws"], options["seed"])
    chosen += parts.by_kind(linears) if "kind" in options["by"] else []
    chosen += parts.by_layer(linears) if "layer" in options["by"] else []
    checkpoint = Path(snakemake.input.config).parent
    found = parts.measure(
        checkpoint,
        Path(snakemake.input.weights).parent,
        *made_from.values(),
        chosen,
        heldout,
        Compute.of(snakemake.params.compute, checkpoint),
    )
    write_json(
        snakemake.output[0],
        {
            **dict(snakemake.wildcards),
            "tokens": [row["tokens"] for row in original],
            "original": [row["nll"] for row in original],
            "parts": found,
            "channels": counts,
            "provenance": {
                "recipe": record["provenance"]["recipe"],
                "options": options,
                "thresholds": snakemake.params.thresholds,
                "seed": options["seed"],
                "versions": versions(),
                "evaluated_tokens": heldout.fingerprint,
                **made_from,
            },
        },
    )
