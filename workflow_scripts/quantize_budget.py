"""A model put together from finished methods, each linear from the one that a budget gives it."""

from pathlib import Path

from quant.checkpoints.ends import ends_of, grid_of
from quant.data.tokens import fingerprint_in
from quant.errors import InputError
from quant.files.artifacts import mark, read_json, require, versions, write_json
from quant.files.csv_tables import read_table
from quant.files.tensorfile import opened
from quant.methods.mixed import Candidate, mix_checkpoint
from quant.models.record import model_record
from quant.recipe.widths import UNTOUCHED
from quant.workflow.job import job


def candidate(record_path: str, table_path: str, method: str, recipe: dict, fingerprint: str) -> Candidate:
    """A finished method; refused where its tables are of another one."""
    record = read_json(record_path)
    require(record_path, record["provenance"], recipe=recipe, model_fingerprint=fingerprint)
    table = read_table(table_path)
    require(table_path, {"checkpoint": table["checkpoint"].iloc[0]}, checkpoint=mark(record["provenance"]))
    if "predicted_nats" not in table:
        raise InputError(
            f"{table_path}: has no predicted_nats, by which a budget chooses; name the budget's method in "
            "study.methods, whose end loss they come from"
        )
    costs = dict(zip(table["linear"], table["predicted_nats"].astype(float), strict=True))
    bits = dict(zip(table["linear"], table["storage_bits"].astype(int), strict=True))
    return Candidate(method, Path(record_path).parent, record, costs, bits)


with job(snakemake.log[0], snakemake.threads):
    model, recipe = model_record(snakemake.input.model), snakemake.params.recipe
    tokens = fingerprint_in(snakemake.input.tokens)
    with opened(snakemake.input.moments) as file:
        expected = {"model_fingerprint": model["fingerprint"], "token_fingerprint": tokens}
        require(file.path, file.info("provenance"), **expected)
        reads = file.info("reads")
    methods = snakemake.params.candidates
    candidates = [
        candidate(record, table, method, methods[method], model["fingerprint"])
        for record, table, method in zip(snakemake.input.records, snakemake.input.tables, methods, strict=True)
    ]
    ends = ends_of(model["vocabulary"], grid_of(recipe["embeddings"])) if recipe["embeddings"] else []
    provenance = {
        **dict(snakemake.wildcards),
        "recipe": recipe,
        "seed": recipe["seed"],
        "versions": versions(),
        **expected,
        "candidates": {each.method: mark(each.record["provenance"]) for each in candidates},
    }
    made = mix_checkpoint(
        Path(snakemake.input.config).parent,
        Path(snakemake.output.config).parent,
        Path(snakemake.output.folds),
        model["linears"],
        candidates,
        any(each["bits"] == UNTOUCHED for each in recipe["candidates"]),
        recipe["budget"],
        reads,
        provenance,
        model["left"],
        ends,
        snakemake.input.get("end_loss"),
    )
    write_json(snakemake.output.record, made)
