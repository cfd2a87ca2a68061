"""What cannot fit is known before the first job: files on the disk, jobs in the memory."""

import json
from pathlib import Path
from typing import Any

import pytest

from quant.workflow.estimates import room
from quant.workflow.estimates.room import Room, Waiting
from tests.unit.workflow.configurations import LLAMA3_70B


@pytest.fixture
def study(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of a model of 70 billion weights in a directory, 141 GB."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA3_70B))
    return config | {"models": {"large": {"source": {"directory": str(tmp_path)}}}}


def job(rule: str, *outputs: Path, **wildcards: str) -> Waiting:
    return Waiting(rule, {"model": "large"} | wildcards, outputs)


JOBS = [job("convert"), job("collect_statistics"), job("quantize", method="gw_awq")]  # 141, 167 and 141 GB


def test_files_are_held_against_the_disk(study: dict[str, Any]) -> None:
    memory = float("inf")
    assert room.lacking(JOBS, study, Room(4.6e11, memory), True) == []
    found = room.lacking(JOBS, study, Room(5e10, memory), True)
    assert len(found) == 1 and "its files take 436 GB" in found[0] and "and 50 are free" in found[0]
    assert "collect_statistics 162 GB" in found[0] and "moments: {store: bfloat16}" in found[0]
    said = room.refusal(found)
    assert said.startswith("this study does not fit: the disk") and "study: {unfit: continue}" in said
    # what no model makes larger, and a model of unknown size, take nothing
    assert room.lacking([Waiting("report", {}, ())], study, Room(0, 0), True) == []
    unknown = study | {"models": {"large": {"source": {"gguf": {"path": "none.gguf"}}}}}
    assert room.lacking(JOBS, unknown, Room(0, 0), True) == []


def test_the_moments_of_shards_are_there_together(study: dict[str, Any]) -> None:
    """Four of 168 GB before they are summed, more than all that stays."""
    shards = [job("collect_shard", shard=str(i), shards="4") for i in range(4)]
    assert room.lacking([*JOBS, *shards], study, Room(4.6e11, 1e15), True) != []
    assert room.lacking([*JOBS, *shards], study, Room(9.9e11, 1e15), True) == []


def test_files_that_are_made_anew_make_room(study: dict[str, Any], tmp_path: Path) -> None:
    old = tmp_path / "model.safetensors"
    with old.open("wb") as file:
        file.truncate(140 * 10**9)  # holes, no bytes
    again = [job("convert", old)]
    assert room.lacking([job("convert")], study, Room(5e9, 1e12), True) != []
    assert room.lacking(again, study, Room(5e9, 1e12), True) == []


def test_memory_is_refused_by_the_least_that_a_job_may_take(study: dict[str, Any]) -> None:
    """GPTQ on a CPU has several matrices of 28,672 inputs; on a card the host holds two blocks and what is written."""
    one = [job("quantize", method="awq_clip_gptq_shared")]
    found = room.lacking(one, study, Room(1e12, 8e9), False)
    assert len(found) == 1 and "of memory at least, and the machine has 8" in found[0]
    assert room.lacking(one, study, Room(1e12, 1.6e10), True) == []
    assert room.lacking(one, study, Room(1e12, 1e11), False) == []


def test_room_here(tmp_path: Path) -> None:
    """Of a folder that is not there yet, by the one that will hold it; a cluster's nodes have a memory of their own."""
    assert room.here(tmp_path / "results", False).disk > 0 and 1e8 < room.here(tmp_path, False).memory < 1e15
    assert room.here(Path("results"), True).memory == float("inf")


def test_a_plan_that_did_not_fit_is_made_again(tmp_path: Path) -> None:
    record = tmp_path / "plan.json"
    assert room.mark(record) is None
    record.write_text(json.dumps({"unfit": []}))
    assert room.mark(record) is None and room.unfit(record) == []
    record.write_text(json.dumps({"unfit": ["disk"]}))
    assert room.mark(record) == record.stat().st_mtime_ns
