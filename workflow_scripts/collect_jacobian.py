"""Second moments weighted by the MLP's squared local Jacobian."""

from pathlib import Path

from quant import tokens
from quant.artifacts import versions
from quant.compute import batch_tokens, device, dtype, halving
from quant.jacobian import collect_jacobian
from quant.job import job
from quant.tensorfile import model_record

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
