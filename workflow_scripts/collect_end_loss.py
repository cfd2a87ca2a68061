"""Second moments weighted by what an error costs the model's predictions."""

import re
from pathlib import Path

from quant.calibration.end_loss import collect_end_loss
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
        lambda n: collect_end_loss(
            checkpoint,
            ids,
            snakemake.output[0],
            int(snakemake.wildcards.parts),
            int(re.search(r"-s(\d+)$", snakemake.wildcards.calibration)[1]),
            where,
            dtype(compute["dtype"], where, checkpoint),
            n,
            {"model_fingerprint": fingerprint, "versions": versions()},
        ),
        batch_tokens(compute["batch_tokens"], where),
        ids.sequences,
    )
