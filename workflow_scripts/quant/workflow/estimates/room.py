"""Whether what is about to run can fit on the disk and in the host's memory, asked before the first job. Without torch.

Files are known to a few per cent, memory less well (tests/unit/workflow/estimates/test_estimate.py): only what cannot
be is refused, by the least that an estimate may mean. Of shards' own files, which go again, only moments are counted.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from quant.workflow.estimates.amounts import MB, Ask, moments
from quant.workflow.estimates.jobs import OF_MODEL
from quant.workflow.estimates.needs import ON_GPU, estimated
from quant.workflow.estimates.plan import gb, most_on_disk
from quant.workflow.estimates.shape import known_shape

DISK, MEMORY = 1.03, 1.45  # times what is measured, at most, that estimates are
LESS = "moments: {store: bfloat16} halves second moments, {store: none} lets them go when all have read them"


class Waiting(NamedTuple):
    """A job that will run, and the files that it makes or makes anew."""

    rule: str
    wildcards: Mapping[str, str]
    outputs: tuple[Path, ...]


class Room(NamedTuple):
    """Bytes: free on the disk of the results, and of the host's memory, inf where jobs run elsewhere."""

    disk: float
    memory: float


def here(folder: Path, on_cluster: bool) -> Room:
    there = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    memory = float("inf") if on_cluster else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Room(shutil.disk_usage(there).free, memory)


def waiting(jobs: Iterable[Any]) -> list[Waiting]:
    """Of Snakemake's jobs."""
    return [Waiting(job.rule.name, dict(job.wildcards.items()), tuple(map(Path, job.output))) for job in jobs]


def lacking(jobs: Iterable[Waiting], config: Mapping[str, Any], room: Room, on_gpu: bool) -> list[str]:
    """What does not fit, each with the number; of models whose size is not known yet, nothing."""
    added: dict[str, float] = {}
    sums, found = 0.0, []
    for job in jobs:
        model = job.wildcards.get("model")
        shape = None if model is None else known_shape(model, config["models"][model]["source"])
        if shape is None:
            continue
        sums += moments(shape, config) if job.rule == "collect_shard" else 0.0
        if job.rule not in OF_MODEL:
            continue
        ask = Ask(shape, config, job.wildcards, on_gpu and job.rule in ON_GPU, memory=room.memory)
        taken = estimated(job.rule, ask)
        replaced = sum(file.stat().st_size for file in job.outputs if file.is_file())
        added[job.rule] = added.get(job.rule, 0.0) + taken.disk / DISK - replaced
        if taken.ram / MEMORY > room.memory:
            least, name = gb(taken.ram / MEMORY), " ".join([job.rule, *job.wildcards.values()])
            found.append(f"{name} takes {least} GB of memory at least, and the machine has {gb(room.memory)}")
    disk = most_on_disk(added, sums / DISK)
    if disk > max(room.disk, MB):
        most = " and ".join(f"{rule} {gb(added[rule])} GB" for rule in sorted(added, key=lambda r: -added[r])[:2])
        found.insert(
            0,
            f"the disk: its files take {gb(disk)} GB more, and {gb(room.disk)} are free (the most: {most}); "
            f"make room, run fewer methods at once, or spare some: {LESS}",
        )
    return found


def refusal(found: list[str]) -> str:
    """In one message."""
    first = f"{found[0]}{f' (and {len(found) - 1} more such)' if found[1:] else ''}"
    return (
        f"this study does not fit: {first}. `make plan` says what each step takes; study: {{unfit: continue}} runs it "
        "all the same"
    )


def unfit(record: Path) -> list[str]:
    """What an earlier plan found."""
    try:
        found: list[str] = json.loads(record.read_text(encoding="utf-8"))["unfit"]
    except (OSError, ValueError, KeyError):
        return []
    return found


def mark(record: Path) -> int | None:
    """Of a plan that did not fit, when it was made, so that it is made again; None of others."""
    return record.stat().st_mtime_ns if unfit(record) else None
