"""A model put together from finished methods, each linear from the one that a budget gives it."""

from quant.files.artifacts import write_json
from quant.methods.budgets.job import BudgetJob
from quant.methods.budgets.mixed import mix_checkpoint
from quant.methods.source import Output
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    work, out = BudgetJob.of(snakemake.input, snakemake.params, snakemake.wildcards), snakemake.output
    write_json(out.record, mix_checkpoint(work.source, Output.of(out), work.known, work.budget))
