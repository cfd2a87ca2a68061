"""A figure of every layer's pre-activations, the list of them, and one over all layers."""

from pathlib import Path

import pandas as pd
from tqdm import tqdm

from quant.analysis.preactivations import channel_table, most_critical, opened, samples_of
from quant.files.artifacts import read_json, write_plain_json
from quant.files.csv_tables import read_table
from quant.report.figures.preactivations import classes_by_layer, layer_preactivations
from quant.report.figures.style import save, save_bitmap
from quant.workflow.job import job

EXAMPLES = 5  # critical channels whose distribution is drawn

with job(snakemake.log[0]):
    record = read_json(snakemake.input.record)
    table = read_table(snakemake.input.table)
    provenance = record["provenance"] | {"thresholds": record["thresholds"]}
    folder, index = Path(snakemake.output.layers), []
    paths = (Path(snakemake.input[key]) for key in ("channels", "preactivations"))
    with opened(Path(snakemake.input.config).parent, *paths) as files:
        for layer, rows in tqdm(table.groupby("layer", sort=True), desc="figures", unit="layer"):
            tables = [channel_table(files, linear, record["thresholds"]) for linear in rows.linear]
            channels = pd.concat(tables, ignore_index=True)
            shown = most_critical(channels[channels.critical], EXAMPLES)
            samples = samples_of(files.preactivations, shown)
            drawn = layer_preactivations(layer, channels, shown, samples, record["thresholds"])
            path = folder / f"layer-{layer}.webp"
            save_bitmap(drawn, path, provenance)
            index.append({"layer": int(layer), "file": str(path.relative_to(Path(snakemake.output.index).parent))})
    save(classes_by_layer(table), snakemake.output.summary, provenance)
    write_plain_json(snakemake.output.index, index)
