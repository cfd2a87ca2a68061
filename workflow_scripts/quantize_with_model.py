"""Quantises one model by a recipe that runs it: inputs as the quantised model gives them, or tuning."""

from pathlib import Path

from quant.calibration.reader import Statistics
from quant.data import tokens
from quant.files.artifacts import read_json, require, versions, write_json
from quant.methods.with_model import quantize_with_model
from quant.models.compute import Compute
from quant.models.record import model_record
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    model, recipe = model_record(snakemake.input.model), snakemake.params.recipe
    source = Path(snakemake.input.config).parent
    ids = tokens.load(snakemake.input.tokens, spec=snakemake.params.spec, model_fingerprint=model["fingerprint"])
    read = ("channels", "moments", "noisy", "weighted", "row_weight", "rows")
    paths = {name: path for name, path in snakemake.input.items() if name in read}
    chosen: dict = {}
    if (widths := snakemake.input.get("widths")) is not None:
        said = read_json(widths)
        own = {"recipe": recipe, "model_fingerprint": model["fingerprint"], "token_fingerprint": ids.fingerprint}
        require(widths, said["provenance"], **own)
        chosen = {row["linear"]: row for row in said["linears"]}
    provenance = {
        **dict(snakemake.wildcards),
        "recipe": recipe,
        "seed": recipe["seed"],
        "versions": versions(),
        "model_fingerprint": model["fingerprint"],
    }
    result = Compute.of(snakemake.params.compute, source).halving(
        lambda compute: quantize_with_model(
            source,
            Path(snakemake.output.config).parent,
            Path(snakemake.output.folds),
            model["linears"],
            Statistics(paths, model["fingerprint"], snakemake.params.linears, ids.fingerprint, recipe["plain_share"]),
            recipe,
            ids,
            compute,
            provenance,
            model["left"],
            model["unpacked"],
            model["vocabulary"],
            snakemake.input.get("vocabulary"),
            {name: (row["bits"], row["group_size"]) for name, row in chosen.items()},
        ),
        ids.sequences,
    )
    if chosen:
        result |= {key: said[key] for key in ("predicted_nats", "swaps") if key in said}
        for row in result["linears"]:
            row |= {key: value for key, value in chosen[row["linear"]].items() if key != "predicted_nats"}
    write_json(snakemake.output.record, result)
