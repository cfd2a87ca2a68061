"""One self-contained HTML page."""

from pathlib import Path

import pandas as pd

from quant import figures, report
from quant.artifacts import read_json, versions, write_text
from quant.job import job
from quant.steps import read_benchmarks

with job(snakemake.log[0]):
    config = snakemake.params.config
    summary = pd.read_csv(snakemake.input.summary)
    checks = {check["model"]: check for check in map(read_json, snakemake.input.checks)}
    drawn = {
        name: Path(path).read_text(encoding="utf-8")
        for name, path in zip(snakemake.params.figures, snakemake.input.figures, strict=True)
    }
    provenance = {
        "versions": versions(),
        "seed": config["calibration"]["seed"],
        "token_fingerprints": ", ".join(sorted(set(summary["token_fingerprint"]))),
    }
    page = report.build(
        summary,
        pd.read_csv(snakemake.input.comparisons),
        pd.read_csv(snakemake.input.linears),
        drawn,
        config,
        provenance,
        snakemake.params.command,
        figures.method_colours(config["methods"]),
        checks=checks or None,
        channels=pd.concat(map(pd.read_csv, snakemake.input.channels)) if checks else None,
        steps=read_benchmarks(Path("results/benchmarks"), config["study"]),
        missing=snakemake.params.missing,
    )
    write_text(snakemake.output[0], page)
