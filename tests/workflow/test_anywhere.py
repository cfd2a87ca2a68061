"""From another folder, from a clone that is not written to, as a module: the numbers of the study in place."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny

pytestmark = pytest.mark.slow  # a study of its own takes minutes on two cores

EVALUATION = "results/tiny/rtn_g/evaluation/heldout.json"
MODULE = """
configfile: "mine.yaml"


module praq:
    snakefile:
        "{snakefile}"
    config:
        config["praq"]


use rule * from praq as praq_*
"""


def snakemake(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "snakemake", *arguments, "--cores", "2", "--resources", "gpu=1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def files(folder: Path) -> dict[Path, int]:
    """Every file of a folder with its time, but what Python caches of its modules."""
    found = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {path: path.stat().st_mtime_ns for path in found}


def measured(folder: Path) -> dict[str, Any]:
    """What an evaluation says of the model, apart from the time it took."""
    found = tiny.read(folder / EVALUATION)
    return {key: value for key, value in found.items() if key not in ("tokens_per_s", "quantize_s", "checksum")}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.clone(tmp_path_factory.mktemp("anywhere") / "clone")


def experiment(clone: Path, folder: Path, **changes: Any) -> Path:
    """A folder with a config.yaml of its own, whose paths go from there."""
    folder.mkdir()
    overlay = json.loads(json.dumps(tiny.OVERLAY).replace('"inputs/', '"../clone/inputs/'))
    (folder / "config.yaml").write_text(yaml.safe_dump(overlay | changes))
    return folder


def test_two_experiments_in_two_folders(clone: Path, study: Path) -> None:
    """Each with its own configuration and results; nothing of the clone changes."""
    before = files(clone)
    first = experiment(clone, clone.parent / "first")
    second = experiment(clone, clone.parent / "second", study=tiny.OVERLAY["study"] | {"methods": ["rtn_g", "gw_awq"]})
    snakefile = ["--snakefile", str(clone / "Snakefile")]
    snakemake(first, EVALUATION, *snakefile)
    assert measured(first) == measured(study)
    assert tiny.pending_in(snakemake(first, "results/report.html", *snakefile, "-n"))["evaluate"] == 2
    elsewhere = snakemake(clone, "results/report.html", "--directory", str(second), "-n")
    assert tiny.pending_in(elsewhere)["evaluate"] == 2, "one of each method, none is done there"
    assert files(clone) == before and not (second / "results").exists()


def test_a_module(clone: Path, study: Path) -> None:
    """Rules by other names in a workflow that has a configuration, a data set and a folder of its own."""
    folder = clone.parent / "module"
    folder.mkdir()
    overlay = json.loads(json.dumps(tiny.OVERLAY).replace('"inputs/', '"../clone/inputs/'))
    (folder / "mine.yaml").write_text(yaml.safe_dump({"praq": overlay, "of_the_workflow": 1}))
    (folder / "config.yaml").write_text("of another: workflow\n")
    (folder / "Snakefile").write_text(MODULE.format(snakefile="../clone/Snakefile"))
    before = files(clone)
    snakemake(folder, EVALUATION)
    assert measured(folder) == measured(study)
    rules = tiny.pending_in(snakemake(folder, "results/report.html", "-n"))
    assert rules["praq_report"] == 1 and rules["praq_evaluate"] == 2
    assert files(clone) == before


# --- GPUs


USING = {"collect_statistics", "quantize", "measure_error", "evaluate_original", "evaluate"}


@pytest.mark.parametrize(
    ("device", "profile", "asking"),
    [
        ("auto", "default", set()),  # this machine shows none
        ("cuda", "default", USING),
        ("auto", "slurm", USING),  # a node may have one
        ("cpu", "slurm", set()),
    ],
)
def test_gpus_are_asked_for_where_they_are_used(clone: Path, device: str, profile: str, asking: set[str]) -> None:
    overlay = tiny.OVERLAY | {"compute": {"device": device, "threads": 1}}
    (clone / f"{device}.yaml").write_text(yaml.safe_dump(overlay))
    command = [sys.executable, "-m", "snakemake", "results/summary.csv", "-n", "--configfile", f"{device}.yaml"]
    done = subprocess.run(
        [*command, "--workflow-profile", f"profiles/{profile}", *(["--cores", "4"] if profile == "default" else [])],
        cwd=clone,
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    jobs = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", done.stdout + done.stderr, re.MULTILINE)
    assert {rule for rule, _ in jobs} > USING
    assert {rule for rule, said in jobs if re.search(r"resources:.*\bgpu=1\b", said)} == asking
