"""The width of each linear within a budget, for a recipe that quantises the whole model with them."""

from pathlib import Path

from quant.checkpoints.ends import wanted
from quant.data.tokens import fingerprint_in
from quant.files.artifacts import versions, write_json
from quant.files.tensorfile import opened
from quant.methods.choice import given, widths_of
from quant.models.record import model_record
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    model, recipe = model_record(snakemake.input.model), snakemake.params.recipe
    provenance = {
        **dict(snakemake.wildcards),
        "recipe": recipe,
        "seed": recipe["seed"],
        "versions": versions(),
        "model_fingerprint": model["fingerprint"],
        "token_fingerprint": fingerprint_in(snakemake.input.tokens),
    }
    known = given(
        snakemake.input.records,
        snakemake.input.tables,
        snakemake.input.get("swaps"),
        snakemake.params.candidates,
        snakemake.input.moments,
        provenance,
    )
    with opened(snakemake.input.weights) as file:
        ends = wanted(recipe["embeddings"], model["vocabulary"], file.layout())
    source, end_loss = Path(snakemake.input.config).parent, snakemake.input.get("end_loss")
    write_json(snakemake.output[0], widths_of(source, model["linears"], known, recipe["budget"], ends, end_loss))
