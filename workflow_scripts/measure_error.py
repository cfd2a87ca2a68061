"""The exact error of every linear of a written checkpoint."""

from pathlib import Path

import pandas as pd

from quant.artifacts import read_json, whole
from quant.compute import device
from quant.job import job
from quant.referee import measure

with job(snakemake.log[0], snakemake.threads):
    record = read_json(snakemake.input.record)
    rows = measure(
        Path(snakemake.input.original),
        Path(snakemake.input.config).parent,
        Path(snakemake.input.folds),
        Path(snakemake.input.moments),
        record,
        snakemake.params.linears,
        device(snakemake.params.device),
    )
    table = pd.DataFrame(rows)
    for name in ("method", "model"):
        table.insert(0, name, snakemake.wildcards[name])
    with whole(snakemake.output[0]) as temporary:
        table.to_csv(temporary, index=False)
