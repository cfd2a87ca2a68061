"""Keep half of one layer's output channels by AWQ's or PRAQ's score: which choice leaves the smaller error?"""

import json
from pathlib import Path

import pandas as pd

from quant import tensorfile, tokens
from quant.artifacts import read_json, versions, whole, write_json
from quant.compute import batch_tokens, device, dtype
from quant.job import job
from quant.layer_mse import check

with job(snakemake.log[0], snakemake.threads):
    options, compute = snakemake.params.options, snakemake.params.compute
    checkpoint = Path(snakemake.input.config).parent
    where = device(compute["device"])
    heldout = tokens.load(snakemake.input.tokens)
    heldout = heldout._replace(sequences=heldout.sequences[: options["n_samples"]])
    channels, linears, moments = check(
        checkpoint,
        Path(snakemake.input.channels),
        heldout,
        options["layer"],
        options,
        snakemake.params.linears,
        where,
        dtype(compute["dtype"], where, checkpoint),
        batch_tokens(compute["batch_tokens"], where),
        snakemake.params.comparison["resamples"],
        snakemake.params.comparison["seed"],
    )
    model = snakemake.wildcards.model
    with whole(snakemake.output.channels) as temporary:
        pd.DataFrame(channels).assign(model=model).to_csv(temporary, index=False)
    provenance = {
        "options": options,
        "seed": snakemake.params.comparison["seed"],
        "versions": versions(),
        "token_fingerprint": heldout.fingerprint,
        "model_fingerprint": read_json(snakemake.input.model)["fingerprint"],
    }
    mark = {key: json.dumps(value) for key, value in {"reads": {name: name for name in moments}, **provenance}.items()}
    tensorfile.save(snakemake.output.moments, moments, mark)
    verdict = {"model": model, "layer": options["layer"], "keep_ratio": options["keep_ratio"], "linears": linears}
    verdict |= {"dataset": snakemake.params.dataset, "tokens": heldout.count, "provenance": provenance}
    write_json(snakemake.output.verdict, verdict)
