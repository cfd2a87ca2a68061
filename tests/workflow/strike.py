"""Something happens to each rule's first job while its first output has all its content but not yet its name."""

from pathlib import Path

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
