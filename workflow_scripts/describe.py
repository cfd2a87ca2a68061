"""A model card in every checkpoint."""

from pathlib import Path

from quant.checkpoints.card import card
from quant.files.artifacts import read_json, write_text
from quant.files.csv_tables import read_table
from quant.workflow.job import job

with job(snakemake.log[0]):
    summary = read_table(snakemake.input.summary)
    caveats = {Path(path).parents[1].name: read_json(path).get("caveat") for path in snakemake.input.converted}
    records = {Path(path).parent: read_json(path) for path in snakemake.input.records}
    for path in map(Path, snakemake.output):
        folder = path.parent.parent
        model, method = folder.parent.name, folder.name
        about = snakemake.params.models[model]
        about = about | {"caveat": about["caveat"] or caveats[model]}
        text = card(
            model, method, summary, records[folder], about, snakemake.params.calibration, path.parent.as_posix()
        )
        write_text(path, text)
