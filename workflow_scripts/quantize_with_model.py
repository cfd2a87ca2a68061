"""Quantises one model by a recipe that runs it: inputs as the quantised model gives them, or tuning."""

from quant.data import tokens
from quant.files.artifacts import write_json
from quant.methods.budgets.widths import GivenWidths
from quant.methods.job import Job
from quant.methods.source import Output
from quant.methods.with_model.quantize import quantize_with_model
from quant.runtime.compute import Compute
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    given, params, out = snakemake.input, snakemake.params, snakemake.output
    work = Job.of(given, params, snakemake.wildcards)
    of_model = {"model_fingerprint": work.provenance["model_fingerprint"]}
    ids = tokens.load(given.tokens, spec=params.spec, **of_model)
    made_from = {"recipe": params.recipe, "token_fingerprint": ids.fingerprint, **of_model}
    widths = GivenWidths.read(given.get("widths"), **made_from)
    result = Compute.of(params.compute, work.source.folder).halving(
        lambda compute: quantize_with_model(
            work.source,
            Output.of(out),
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
