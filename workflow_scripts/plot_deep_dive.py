"""The two figures of a layer in detail."""

from quant.analysis.preactivations import most_critical, most_negative, samples_of
from quant.files import tensorfile
from quant.files.artifacts import read_json
from quant.files.csv_tables import read_table
from quant.report.figures import layer
from quant.report.figures.style import save_bitmap
from quant.workflow.job import job

with job(snakemake.log[0]):
    record = read_json(snakemake.input.record)
    outputs, inputs, agreement = (read_table(snakemake.input[key]) for key in ("outputs", "inputs", "agreement"))
    correlation, detailed = snakemake.output
    drawn = layer.correlation(record["layer"], outputs, inputs, agreement)
    save_bitmap(drawn, correlation, record["provenance"])
    chosen = {
        "most negative": most_negative(outputs, snakemake.params.channels),
        "nearest to critical": most_critical(outputs, snakemake.params.channels),
    }
    with tensorfile.opened(snakemake.input.preactivations) as file:
        samples = {name: samples_of(file, rows) for name, rows in chosen.items()}
    drawn = layer.negative_channels(record["layer"], chosen, samples, record["thresholds"])
    save_bitmap(drawn, detailed, record["provenance"])
