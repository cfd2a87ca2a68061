"""`make clean-method` forgets one method of every model, what was made of it, and nothing else. That the next run makes
these anew alone: tests/workflow/test_staleness.py."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tiny import ROOT, of_shell

METHOD_FILES = [
    *("a/mine/quantize.json", "b/mine/evaluation/d.json", "logs/quantize/a/mine.log", "logs/quantize/a/mine.gpu.json"),
    *("logs/evaluate/a/mine/d.log", "benchmarks/quantize/a/mine.tsv", "benchmarks/evaluate/a/mine/d.tsv"),
]
# what was made of it and of others
MADE = [
    *("summary.csv", "comparisons.csv", "linears.csv", "rounding_stats.csv", "learnt.csv", "profiles.csv"),
    *("contrasts.csv", "comparison_results.json", "report.html", "best/choice.json", "b/check_mse/methods.csv"),
]
OTHERS = [
    *("a/mine2/quantize.json", "a/original/convert.json", "logs/mine/a/x.log", "figures/mine/x.svg", "best/mine/x"),
    *(
        "logs/quantize/a/mine2.log",
        "logs/quantize/a/mine.v2.log",
        "a/calibration/n1-s1/tokens.safetensors",
        "a/analysis/layers.json",
        "tasks.csv",
        "words.csv",
        "sensitivity.csv",
        "synthetic.csv",
        "a/check_mse/methods.csv",
        "b/check_mse/channels.csv",
    ),
]


def clean(folder: Path, method: str, *more: str) -> int:
    """Exit status, of a folder in which all files are there."""
    save(folder, METHOD_FILES + MADE + OTHERS)
    return forget(folder, method, *more).returncode


def save(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / "results" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def forget(folder: Path, method: str, *more: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "Makefile", folder)
    command = ["make", "clean-method", f"METHOD={method}", *more]
    return subprocess.run(command, cwd=folder, env=of_shell(), capture_output=True, text=True)


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
    assert left(folder) == set(OTHERS) and left(tmp_path) == {*METHOD_FILES, *MADE, *OTHERS}


@pytest.mark.parametrize("method", ["", "..", ".", "*", "a b", "original", "analysis", "'; touch x; '", "-rf", "../x"])
def test_what_is_no_method_is_refused(tmp_path: Path, method: str) -> None:
    assert clean(tmp_path, method) != 0
    assert left(tmp_path) == {*METHOD_FILES, *MADE, *OTHERS} and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("of_method", "table"),
    [("tasks/t.json", "tasks.csv"), ("words.json", "words.json"), ("sensitivity/d.json", "sensitivity.csv")],
)
def test_a_table_goes_with_what_it_was_made_of(tmp_path: Path, of_method: str, table: str) -> None:
    save(tmp_path, [f"a/mine/{of_method}", "a/mine2/evaluation/d.json", "summary.csv", "report.html", table])
    assert forget(tmp_path, "mine").returncode == 0
    assert left(tmp_path) == {"a/mine2/evaluation/d.json", "summary.csv"}


@pytest.mark.parametrize("record", ["quantize.json", "widths.json"])
def test_a_budget_goes_with_its_candidate(tmp_path: Path, record: str) -> None:
    save(tmp_path, ["a/mine.2/quantize.json", "a/mix/evaluation/d.json", "summary.csv", f"a/other/{record}"])
    for method, candidate in (("mix", "mine.2"), ("other", "mine-2")):
        said = {"recipe": {"candidates": [{"bits": 2}], "mine.2": 0}, "candidates": {candidate: "0123456789abcdef"}}
        (tmp_path / "results/a" / method / record).write_text(json.dumps({"provenance": said}, indent=1))
    done = forget(tmp_path, "mine.2")
    assert done.returncode == 0 and done.stdout == "forgotten: mine.2 mix\n"
    assert left(tmp_path) == {f"a/other/{record}"}


def test_a_method_that_has_nothing_there_is_named(tmp_path: Path) -> None:
    save(tmp_path, OTHERS + MADE)
    done = forget(tmp_path, "min")
    assert done.returncode != 0 and done.stdout == "min: nothing of it in ./results\n"
    assert left(tmp_path) == {*OTHERS, *MADE}
