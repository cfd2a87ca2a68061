"""Whether anything of the study can be taken to results/best, as soon as the model is there."""

from pathlib import Path

from quant.files.artifacts import write_json
from quant.files.tensorfile import opened
from quant.methods.dense import best_mistakes
from quant.models.conversion.record import model_record
from quant.workflow.demands import refuse
from quant.workflow.job import job

with job(snakemake.log[0]):
    record, wanted = model_record(snakemake.input.model), snakemake.params.wanted
    with opened(Path(snakemake.input.weights).with_name("model.safetensors")) as file:
        refuse(snakemake.wildcards.model, list(best_mistakes(wanted, record, file.layout())))
    write_json(snakemake.output[0], {"model": snakemake.wildcards.model, "wanted": wanted})
