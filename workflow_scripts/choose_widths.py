"""The width of each linear within a budget, for a recipe that quantises the whole model with them."""

from quant.files.artifacts import write_json
from quant.methods.budgets.choice import widths_of
from quant.methods.budgets.job import BudgetJob
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    write_json(snakemake.output[0], widths_of(*BudgetJob.of(snakemake.input, snakemake.params, snakemake.wildcards)))
