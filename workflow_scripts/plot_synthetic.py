"""The figure of the "loud silence" benchmark."""

from quant import analysis_figures, figures
from quant.artifacts import read_json
from quant.job import job

with job(snakemake.log[0]):
    summary = read_json(snakemake.input[0])
    drawn = analysis_figures.synthetic(summary)
    figures.save(drawn, snakemake.output[0], {"versions": summary["versions"], "options": summary["options"]})
