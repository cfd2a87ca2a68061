"""A method's checkpoint in the format of another tool."""

from pathlib import Path

from quant.checkpoints.export import export, type_of
from quant.evaluation.trial import try_in
from quant.files.artifacts import read_json, versions, write_json
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    target = Path(snakemake.output.record).parent
    fingerprint = read_json(snakemake.input.record)["provenance"]["model_fingerprint"]
    dtype = type_of(Path(snakemake.input.config).parent, snakemake.params.format)
    if dtype is not None:
        try_in(Path(snakemake.input.config).parent, dtype, snakemake.params.format)
    made = export(Path(snakemake.input.config).parent, target, snakemake.params.format, fingerprint)
    print(f"{made['format']}: {made['size_mb']:.1f} MB, at most {made['largest_deviation']:.2g} steps off")
    write_json(snakemake.output.record, made | {"versions": versions()})
