"""The two figures of a layer in detail."""

from quant import analysis_figures, tensorfile
from quant.artifacts import read_json
from quant.csv_tables import read_table
from quant.job import job
from quant.preactivations import most_critical, most_negative, samples_of

with job(snakemake.log[0]):
    record = read_json(snakemake.input.record)
    outputs, inputs, agreement = (read_table(snakemake.input[key]) for key in ("outputs", "inputs", "agreement"))
    correlation, detailed = snakemake.output
    drawn = analysis_figures.correlation(record["layer"], outputs, inputs, agreement)
    analysis_figures.save_bitmap(drawn, correlation, record["provenance"])
    chosen = {
        "most negative": most_negative(outputs, snakemake.params.channels),
        "nearest to critical": most_critical(outputs, snakemake.params.channels),
    }
    with tensorfile.opened(snakemake.input.preactivations) as file:
        samples = {name: samples_of(file, rows) for name, rows in chosen.items()}
    drawn = analysis_figures.negative_channels(record["layer"], chosen, samples, record["thresholds"])
    analysis_figures.save_bitmap(drawn, detailed, record["provenance"])
