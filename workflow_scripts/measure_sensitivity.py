"""Rise of the NLL when only a part of the model is quantised: a kind of linear, a layer, or the risky channels."""

from pathlib import Path

from quant import parts, tokens
from quant.artifacts import read_json, versions, write_json
from quant.compute import batch_tokens, device, dtype
from quant.job import job

with job(snakemake.log[0], snakemake.threads):
    options, compute = snakemake.params.options, snakemake.params.compute
    record = read_json(snakemake.input.record)
    linears = {row["linear"]: row["layer"] for row in record["linears"]}
    original = read_json(snakemake.input.original)["sequences"][: options["n_samples"]]
    heldout = tokens.load(snakemake.input.tokens)
    heldout = heldout._replace(sequences=heldout.sequences[: options["n_samples"]])
    counts, chosen = {}, []
    if "risk" in options["by"]:
        masks, counts = parts.risk_masks(Path(snakemake.input.channels), linears, snakemake.params.thresholds)
        chosen += parts.by_risk(masks, options["draws"], options["seed"])
    chosen += parts.by_kind(linears) if "kind" in options["by"] else []
    chosen += parts.by_layer(linears) if "layer" in options["by"] else []
    where = device(compute["device"])
    checkpoint = Path(snakemake.input.config).parent
    found = parts.measure(
        checkpoint,
        Path(snakemake.input.weights).parent,
        record["provenance"]["model_fingerprint"],
        chosen,
        heldout,
        where,
        dtype(compute["dtype"], where, checkpoint),
        batch_tokens(compute["batch_tokens"], where),
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
                "model_fingerprint": record["provenance"]["model_fingerprint"],
            },
        },
    )
