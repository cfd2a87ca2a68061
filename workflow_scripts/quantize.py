"""Quantises one model by one recipe, or puts together the shards of that."""

from pathlib import Path

from quant.files.artifacts import write_json
from quant.methods.block_shards import Part, join
from quant.methods.job import Job
from quant.methods.quantize import quantize_checkpoint
from quant.models.compute import device
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    given, out = snakemake.input, snakemake.output
    work = Job.of(given, snakemake.params, snakemake.wildcards)
    source, target, folds = Path(given.config).parent, Path(out.config).parent, Path(out.folds)
    linears, left, unpacked = (work.model[key] for key in ("linears", "left", "unpacked"))
    vocabulary, end_loss, where = work.model["vocabulary"], given.get("vocabulary"), device(snakemake.params.device)
    if "part_weights" in given.keys():  # noqa: SIM118
        parts = list(map(Part, given.part_weights, given.part_folds, given.part_records))
        known = left, unpacked, vocabulary, end_loss, where
        result = join(source, target, folds, parts, linears, work.recipe, work.provenance, *known)
    else:
        result = quantize_checkpoint(
            source,
            target,
            folds,
            linears,
            work.statistics,
            work.recipe,
            where,
            work.provenance,
            left,
            unpacked,
            vocabulary=vocabulary,
            end_loss=end_loss,
        )
    write_json(out.record, result)
