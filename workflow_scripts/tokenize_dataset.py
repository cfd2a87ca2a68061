"""A data set's text → token ids."""

from pathlib import Path

from quant.data.texts import tokenize
from quant.models.conversion.record import model_record
from quant.workflow.job import job

with job(snakemake.log[0]):
    spec = snakemake.params.spec
    what = f"datasets.{snakemake.wildcards.dataset}"
    checkpoint = Path(snakemake.input.config).parent
    tokenize(
        checkpoint,
        model_record(snakemake.input.model)["fingerprint"],
        spec,
        spec["n_samples"],
        None,
        what,
        snakemake.output[0],
        f"n_samples: {spec['n_samples']}{' (the default)' * snakemake.params.by_default}",
    )
