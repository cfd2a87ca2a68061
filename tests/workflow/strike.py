"""Something happens to each rule's first job while its first output has all its content but not yet its name."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

KILL = "os.kill(os.getpid(), signal.SIGKILL)"
# to the whole group, as a terminal sends it
INTERRUPT = "os.killpg(0, signal.SIGINT)"
SITE = """
import os, pathlib, signal, sys

fsync = os.fsync

def once(file):
    script = pathlib.Path(sys.argv[0])
    # one script serves two rules
    kind = "_gguf" if "/gguf/" in os.readlink(f"/proc/self/fd/{file}") else ""
    marker = pathlib.Path(os.environ["STRUCK"], script.stem.split(".", 1)[-1] + kind)
    if ".snakemake" in script.parts and not marker.exists():
        marker.touch()
        BLOW
    fsync(file)

os.fsync = once
"""


def strike(folder: Path, monkeypatch: pytest.MonkeyPatch, blow: str) -> Path:
    """Every Python started from now on is in for it; returns a folder with a file for each rule that was struck."""
    (folder / "struck").mkdir()
    site(folder, monkeypatch, SITE.replace("BLOW", blow))
    monkeypatch.setenv("STRUCK", str(folder / "struck"))
    return folder / "struck"


def site(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Code that every Python started from now on runs first."""
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder / "site"))


TIMES = {"quantize_s", "milliseconds", "seconds", "tokens_per_s", "checksum"}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    """A result's bytes, or what it says besides times."""
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        return table.drop(columns=TIMES & set(table.columns)).to_csv()
    return path.read_bytes()


def damage(path: Path, how: str) -> None:
    """Cut in half, or one bit of its last quarter flipped; its time stamp stays."""
    stamp, data = path.stat(), bytearray(path.read_bytes())
    data[-len(data) // 4] ^= 1
    path.write_bytes(data if how == "flipped" else data[: len(data) // 2])
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
