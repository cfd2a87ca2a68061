"""KL on calibration text of the original with one part of it from a method, and with all of it."""

from pathlib import Path

from quant.analysis import parts
from quant.data import tokens
from quant.errors import InputError
from quant.files.artifacts import mark, read_json, require, versions, write_json
from quant.methods.budgets.swaps import parts_of
from quant.models.conversion.record import model_record
from quant.runtime.compute import Compute
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    sections, sequences = (int(snakemake.wildcards[key]) for key in ("sections", "sequences"))
    record, model = read_json(snakemake.input.record), model_record(snakemake.input.model)
    made_from = {"model_fingerprint": model["fingerprint"]}
    require(snakemake.input.record, record["provenance"], recipe=snakemake.params.recipe, **made_from)
    calibration = tokens.load(snakemake.input.tokens, **made_from)
    if sequences > len(calibration.sequences):
        raise InputError(
            f"swaps: sequences: {sequences}: the calibration text has {len(calibration.sequences)}; write no more"
        )
    calibration = calibration._replace(sequences=calibration.sequences[:sequences])
    linears = parts_of(model["linears"], sections)
    asked = {**linears, "all": list(model["linears"])}
    checkpoint = Path(snakemake.input.original_config).parent
    found = parts.measure(
        checkpoint,
        Path(snakemake.input.config).parent,
        *made_from.values(),
        [parts.Part("swap", part, dict.fromkeys(names)) for part, names in asked.items()],
        calibration,
        Compute.of(snakemake.params.compute, checkpoint),
        Path(snakemake.input.folds),
        compared=True,
    )
    predictions = sum(len(each) - 1 for each in calibration.sequences)
    kl = {row["part"]: sum(row["kl"]) / predictions for row in found}
    provenance = {"checkpoint": mark(record["provenance"]), "recipe": snakemake.params.recipe, "versions": versions()}
    provenance |= {"seed": record["provenance"]["seed"], "evaluated_tokens": calibration.fingerprint, **made_from}
    write_json(
        snakemake.output[0],
        {
            **dict(snakemake.wildcards),
            "linears": linears,
            "whole": kl.pop("all"),
            "parts": kl,
            "provenance": provenance,
        },
    )
