"""What a job leaves beside its log, and the report's reading of it."""

import errno
import gc
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from quant.errors import InputError
from quant.files.artifacts import read_json
from quant.report.steps import read_benchmarks
from quant.workflow.job import _Tee, job, note_gpu_peak

STUDY = {"models": ["m"], "methods": ["a", "b"], "datasets": ["d"]}


@pytest.fixture
def benchmarks(tmp_path: Path) -> Path:
    for name in ("quantize/m/a", "quantize/m/b"):
        path = tmp_path / f"benchmarks/{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("s\tmax_rss\n3.5\t120\n")
    return tmp_path / "benchmarks"


def test_a_gpus_peak_is_a_column_where_there_is_one(benchmarks: Path) -> None:
    assert list(read_benchmarks(benchmarks, STUDY)) == ["rule", "job", "seconds", "max_rss_mb"]
    log = benchmarks.parent / "logs/quantize/m/a.gpu.json"
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps({"gpu_peak_mb": 1797.0, "gpu": "a card"}))
    found = read_benchmarks(benchmarks, STUDY).set_index("job")["gpu_peak_mb"]
    assert found["m/a"] == 1797 and found.isna()["m/b"]


class Card:
    """torch, as far as a job asks it for a GPU's memory."""

    def __init__(self, used: bool) -> None:
        self.cuda, self.used = self, used

    def is_initialized(self) -> bool:
        return self.used

    def max_memory_allocated(self) -> int:
        return 2_500_000

    def get_device_name(self) -> str:
        return "a card"


def test_a_job_without_a_gpu_leaves_no_peak_of_an_earlier_run(tmp_path: Path, monkeypatch: Any) -> None:
    peak = tmp_path / "job.gpu.json"
    for used in (True, False):
        monkeypatch.setitem(__import__("sys").modules, "torch", Card(used))
        note_gpu_peak(tmp_path / "job.log")
        assert peak.exists() == used
        assert not used or read_json(peak) == {"gpu_peak_mb": 2.5, "gpu": "a card"}


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """stderr and stdout as they are, again afterwards."""
    for name in ("stderr", "stdout"):
        monkeypatch.setattr(sys, name, getattr(sys, name))


@pytest.mark.usefixtures("streams")
def test_a_log_that_a_full_disk_does_not_take_ends_no_job(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.log").symlink_to("/dev/full")
    with pytest.raises(SystemExit), job(tmp_path / "job.log"):
        print("working")
        raise InputError("x: cannot be written")
    assert capfd.readouterr().err.endswith("working\nERROR x: cannot be written\n")


@pytest.mark.usefixtures("streams")
def test_an_interrupt_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="130"), job(tmp_path / "job.log"):
        raise KeyboardInterrupt
    assert (tmp_path / "job.log").read_text() == "ERROR interrupted\n"


class Disk:
    """A file that takes one piece, or what there is room for."""

    def __init__(self, *room: int) -> None:
        self.room, self.held = list(room), b""

    def write(self, data: bytes) -> int:
        taken = data[: self.room.pop(0)]
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.held += taken
        return len(taken)


def test_a_log_gets_what_it_lacks_once_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tee, disk = _Tee(tmp_path / "job.log"), Disk(9, 3, 0, 0, 99)
    monkeypatch.setattr(tee, "_log", disk)
    for line in ("begun: µ\n", "block 1\n", "block 2\n", "ERROR no\n"):
        tee.write(line)
    assert disk.held.decode() == "begun: µ\nblock 1\nblock 2\nERROR no\n"


@pytest.mark.usefixtures("streams")
def test_a_log_that_cannot_be_begun_is_named(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    with (
        pytest.raises(SystemExit, match=r"^ERROR .*/logs/job\.log: cannot be written \(.*\); mend that and run again$"),
        job(tmp_path / "logs/job.log"),
    ):
        pass


def test_a_job_that_has_ended_well_is_not_looked_through_for_garbage(tmp_path: Path, monkeypatch: Any) -> None:
    done: list[str] = []
    monkeypatch.setattr(gc, "freeze", lambda: done.append("frozen"))
    for name in ("stderr", "stdout"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # as it is, again afterwards
    with job(tmp_path / "job.log"):
        done.append("worked")
    assert done == ["worked", "frozen"]
    with pytest.raises(SystemExit), job(tmp_path / "job.log"):
        raise InputError("no")
    assert done == ["worked", "frozen"]
