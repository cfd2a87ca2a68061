"""Second moments weighted by the MLP's squared local Jacobian."""

from pathlib import Path

from quant.calibration.jacobian import collect_jacobian
from quant.data import tokens
from quant.files.artifacts import versions
from quant.models.compute import batch_tokens, device, dtype, halving
from quant.models.record import model_record
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    compute = snakemake.params.compute
    where = device(compute["device"])
    checkpoint = Path(snakemake.input.config).parent
    fingerprint = model_record(snakemake.input.model)["fingerprint"]
    ids = tokens.load(snakemake.input.tokens, spec=snakemake.params.spec, model_fingerprint=fingerprint)
    halving(
        lambda n: collect_jacobian(
            checkpoint,
            ids,
            snakemake.output[0],
            snakemake.wildcards.jacobian == "jacobian_residual",
            where,
            dtype(compute["dtype"], where, checkpoint),
            n,
            {"model_fingerprint": fingerprint, "versions": versions()},
        ),
        batch_tokens(compute["batch_tokens"], where),
        ids.sequences,
    )
