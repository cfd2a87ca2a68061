"""Second moments weighted by the MLP's squared local Jacobian."""

from pathlib import Path

from quant import tokens
from quant.artifacts import read_json, versions
from quant.compute import batch_tokens, device, dtype
from quant.jacobian import collect_jacobian
from quant.job import job

with job(snakemake.log[0], snakemake.threads):
    compute = snakemake.params.compute
    where = device(compute["device"])
    checkpoint = Path(snakemake.input.config).parent
    collect_jacobian(
        checkpoint,
        tokens.load(snakemake.input.tokens),
        snakemake.output[0],
        snakemake.wildcards.jacobian == "jacobian_residual",
        where,
        dtype(compute["dtype"], where, checkpoint),
        batch_tokens(compute["batch_tokens"], where),
        {"model_fingerprint": read_json(snakemake.input.model)["fingerprint"], "versions": versions()},
    )
