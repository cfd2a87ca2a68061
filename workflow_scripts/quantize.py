"""Quantises one model by one recipe."""

from pathlib import Path

from quant.calibration.reader import Statistics
from quant.data.tokens import fingerprint_in
from quant.files.artifacts import versions, write_json
from quant.methods.quantize import quantize_checkpoint
from quant.models.compute import device
from quant.models.record import model_record
from quant.recipe.recipe import Recipe
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    model, recipe = model_record(snakemake.input.model), Recipe.of(snakemake.params.recipe)
    read = ("channels", "moments", "noisy", "weighted", "row_weight")
    tokens = fingerprint_in(snakemake.input.tokens) if "tokens" in snakemake.input.keys() else None  # noqa: SIM118
    statistics = {name: path for name, path in snakemake.input.items() if name in read}
    provenance = {
        **dict(snakemake.wildcards),
        "recipe": snakemake.params.recipe,
        "seed": recipe.seed,
        "versions": versions(),
        "model_fingerprint": model["fingerprint"],
    }
    result = quantize_checkpoint(
        Path(snakemake.input.config).parent,
        Path(snakemake.output.config).parent,
        Path(snakemake.output.folds),
        model["linears"],
        Statistics(statistics, model["fingerprint"], snakemake.params.linears, tokens, recipe.plain_share),
        recipe,
        device(snakemake.params.device),
        provenance,
        model["left"],
        model["unpacked"],
    )
    write_json(snakemake.output.record, result)
