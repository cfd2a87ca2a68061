"""Every method's texts → words.csv, and some of them side by side."""

from quant.comparison.words import examples, words_table
from quant.files.artifacts import read_json, require, versions, write_json
from quant.files.csv_tables import write_table
from quant.workflow.job import job

with job(snakemake.log[0]):
    written = [read_json(path) for path in snakemake.input.texts]
    originals = {one["model"]: one["provenance"] for one in written if one["method"] == "original"}
    for path, one in zip(snakemake.input.texts, written, strict=True):
        if one["method"] != "original":
            same = {key: originals[one["model"]][key] for key in ("task_fingerprint", "model_fingerprint")}
            require(path, one["provenance"], **same, recipe=snakemake.params.recipes[one["method"]])
    options = snakemake.params.comparison["resamples"], snakemake.params.comparison["seed"]
    write_table(snakemake.output.table, words_table(written, *options))
    shown = {"examples": examples(written, snakemake.params.show), "provenance": {"versions": versions()}}
    write_json(snakemake.output.examples, shown)
