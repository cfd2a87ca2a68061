"""What an export cannot hold of a method, before the method is quantised for it."""

from pathlib import Path

from quant.errors import InputError
from quant.files.artifacts import write_json
from quant.files.tensorfile import opened
from quant.methods.exporting import why_no_export
from quant.models.conversion.record import model_record
from quant.workflow.job import job

with job(snakemake.log[0]):
    folder, names = Path(snakemake.input.config).parent, snakemake.wildcards
    with opened(folder / "model.safetensors") as file:
        record = model_record(snakemake.input.model)
        refused = why_no_export(names.format, snakemake.params.recipe, folder, record, file.layout())
    if refused is not None:
        raise InputError(f"export {names.format} of {names.method}: {refused.reason}; {refused.advice}")
    write_json(snakemake.output[0], {"method": names.method, "format": names.format})
