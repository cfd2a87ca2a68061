"""`make clean-method` forgets one method of every model, and nothing else."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tiny import ROOT

METHOD_FILES = [
    *("a/mine/quantize.json", "b/mine/evaluation/d.json", "logs/quantize/a/mine.log", "logs/quantize/a/mine.gpu.json"),
    *("logs/evaluate/a/mine/d.log", "benchmarks/quantize/a/mine.tsv", "benchmarks/evaluate/a/mine/d.tsv"),
]
OTHERS = [
    *("a/mine2/quantize.json", "a/original/convert.json", "logs/mine/a/x.log", "figures/mine/x.svg", "best/mine/x"),
    *(
        "logs/quantize/a/mine2.log",
        "logs/quantize/a/mine.v2.log",
        "a/calibration/n1-s1/tokens.safetensors",
        "a/analysis/layers.json",
        "summary.csv",
    ),
]


def clean(folder: Path, method: str, *more: str) -> int:
    for name in METHOD_FILES + OTHERS:
        path = folder / "results" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    shutil.copy(ROOT / "Makefile", folder)
    return subprocess.run(
        ["make", "clean-method", f"METHOD={method}", *more], cwd=folder, capture_output=True
    ).returncode


def left(folder: Path) -> set[str]:
    results = folder / "results"
    return {str(path.relative_to(results)) for path in results.rglob("*") if path.is_file()}


def test_one_method_goes(tmp_path: Path) -> None:
    assert clean(tmp_path, "mine") == 0
    assert left(tmp_path) == set(OTHERS)


def test_of_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    clean(folder, "")
    assert clean(tmp_path, "mine", "IN=a folder") == 0 and clean(tmp_path, "mine", "IN=none") != 0
    assert left(folder) == set(OTHERS) and left(tmp_path) == {*METHOD_FILES, *OTHERS}


@pytest.mark.parametrize("method", ["", "..", ".", "*", "a b", "original", "analysis", "'; touch x; '", "-rf", "../x"])
def test_what_is_no_method_is_refused(tmp_path: Path, method: str) -> None:
    assert clean(tmp_path, method) != 0
    assert left(tmp_path) == {*METHOD_FILES, *OTHERS} and not (tmp_path / "x").exists()
