"""Wall time and memory of every job, from the benchmark files that Snakemake writes."""

from pathlib import Path
from typing import Any

import pandas as pd

from quant.files.artifacts import read_json


def wanted(job: tuple[str, ...], study: dict[str, list[str]]) -> bool:
    """Whether a job's wildcards (model/method/dataset, or model/layer, as far as it has them) are part of the study."""
    names = {*study["models"], *study["methods"], *study["datasets"], "original"}
    return (
        not job
        or job[0] not in study["models"]
        or len(job) < 2
        or job[1] in names
        or job[1].startswith("n")
        or job[1].isdigit()
    )


def with_plan(steps: pd.DataFrame, plan: Path | None) -> pd.DataFrame:
    """By rule what a plan said beside what was measured: planned_s, planned_mb, planned_gpu_mb; nothing without one."""
    if plan is None:
        return steps
    jobs = pd.DataFrame(read_json(plan)["jobs"])
    of_rule = jobs.groupby("rule")
    planned = {"planned_s": of_rule["seconds"].mean(), "planned_mb": of_rule["ram"].max() / 1e6}
    planned |= {"planned_gpu_mb": of_rule["gpu"].max() / 1e6}
    return steps.assign(**{key: steps["rule"].map(value) for key, value in planned.items()})


def read_benchmarks(folder: Path, study: dict[str, Any]) -> pd.DataFrame:
    """rule, job, seconds, max_rss_mb of each benchmark file of the study's jobs; rss is missing for very short jobs.
    gpu_peak_mb where a job used a GPU, from beside its log in the folder `logs` next to this one."""
    rows = []
    for path in sorted(folder.rglob("*.tsv")):
        name = path.relative_to(folder)
        rule, *job = name.with_suffix("").parts
        if wanted(tuple(job), study):
            measured = pd.read_csv(path, sep="\t").iloc[0]
            rss = pd.to_numeric(measured["max_rss"], errors="coerce")
            row = {"rule": rule, "job": "/".join(job), "seconds": measured["s"], "max_rss_mb": rss}
            peak = (folder.parent / "logs" / name).with_suffix(".gpu.json")
            rows.append(row | ({"gpu_peak_mb": read_json(peak)["gpu_peak_mb"]} if peak.is_file() else {}))
    columns = ["rule", "job", "seconds", "max_rss_mb"]
    return pd.DataFrame(rows, columns=columns + (["gpu_peak_mb"] if any("gpu_peak_mb" in row for row in rows) else []))
