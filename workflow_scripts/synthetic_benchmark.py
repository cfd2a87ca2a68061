"""AWQ, PRAQ v3, a random and the best choice of outputs to keep, on the "loud silence" data of many seeds."""

from quant.analysis.synthetic import benchmark, summarise
from quant.files.artifacts import versions, write_json
from quant.files.csv_tables import write_table
from quant.workflow.job import job

with job(snakemake.log[0]):
    options, comparison = snakemake.params.options, snakemake.params.comparison
    trials = benchmark(options, snakemake.params.praq)
    write_table(snakemake.output.trials, trials)
    summary = {
        "options": options,
        "praq": snakemake.params.praq,
        "comparison": comparison,
        "versions": versions(),
        "scales": summarise(trials, comparison["resamples"], comparison["seed"]),
    }
    write_json(snakemake.output.summary, summary)
