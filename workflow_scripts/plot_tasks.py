"""Figures of the tasks, one a model."""

from quant.files.artifacts import versions
from quant.files.csv_tables import read_table
from quant.report.figures.style import method_colours, save
from quant.report.figures.tasks import tasks
from quant.workflow.job import job

with job(snakemake.log[0]):
    table = read_table(snakemake.input.tasks)
    provenance = {"versions": versions(), "task_fingerprints": sorted(set(table["task_fingerprint"]))}
    for model, path in zip(snakemake.params.models, snakemake.output, strict=True):
        save(tasks(table[table.model == model], method_colours(snakemake.params.methods)), path, provenance)
