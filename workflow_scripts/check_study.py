"""What the study asks of a model that cannot be: all of it in one message, as soon as the model is there."""

from pathlib import Path

from quant.files.artifacts import write_json
from quant.methods.refusals import mistakes
from quant.models.conversion.record import model_record
from quant.workflow.demands import refuse
from quant.workflow.job import job

with job(snakemake.log[0]):
    record, wanted = model_record(snakemake.input.model), snakemake.params.demands
    found = mistakes(Path(snakemake.input.config).parent, record, wanted)
    refuse(snakemake.wildcards.model, found)
    write_json(snakemake.output[0], {"model": snakemake.wildcards.model, "demands": wanted})
