"""Quantises one model by a recipe that runs it: inputs as the quantised model gives them, or tuning."""

from pathlib import Path

from quant.data import tokens
from quant.files.artifacts import write_json
from quant.methods.budgets.widths import GivenWidths
from quant.methods.job import Job
from quant.methods.source import Output, Source
from quant.methods.with_model import quantize_with_model
from quant.models.compute import Compute
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    given, params, out = snakemake.input, snakemake.params, snakemake.output
    work, source = Job.of(given, params, snakemake.wildcards), Path(given.config).parent
    of_model = {"model_fingerprint": work.model["fingerprint"]}
    ids = tokens.load(given.tokens, spec=params.spec, **of_model)
    made_from = {"recipe": params.recipe, "token_fingerprint": ids.fingerprint, **of_model}
    widths = GivenWidths.read(given.get("widths"), **made_from)
    result = Compute.of(params.compute, source).halving(
        lambda compute: quantize_with_model(
            Source.of(source, work.model),
            Output(Path(out.config).parent, Path(out.folds)),
            Job.of(given, params, snakemake.wildcards).statistics,  # none of a try before holds memory
            params.recipe,
            ids,
            compute,
            work.provenance,
            end_loss=given.get("embedding_moments"),
            widths=widths.grids,
        ),
        ids.sequences,
    )
    write_json(out.record, widths.told(result))
