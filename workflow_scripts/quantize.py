"""Quantises one model by one recipe, or puts together the shards of that."""

from quant.files.artifacts import write_json
from quant.methods.block_shards import Part, join
from quant.methods.job import Job
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output
from quant.runtime.compute import device
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    given, out = snakemake.input, snakemake.output
    work, target = Job.of(given, snakemake.params, snakemake.wildcards), Output.of(out)
    way, end_loss = (work.recipe, device(snakemake.params.device), work.provenance), given.get("embedding_moments")
    if "part_weights" in given.keys():  # noqa: SIM118
        parts = list(map(Part, given.part_weights, given.part_folds, given.part_records))
        result = join(work.source, target, parts, *way, end_loss=end_loss)
    else:
        result = quantize_checkpoint(work.source, target, work.statistics, *way, end_loss=end_loss)
    write_json(out.record, result)
