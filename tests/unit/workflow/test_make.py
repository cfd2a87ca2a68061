"""What `make report` and `make best` run, with a stand-in for Snakemake that says its arguments."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny import ROOT, of_shell


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The Makefile with an environment that is whole, a model's directory with a space in its name, and a text."""
    folder = tmp_path / "project"
    for name in ("envs", ".venv/bin", "results", "inputs/My Model"):
        (folder / name).mkdir(parents=True)
    for name in ("Makefile", "config.yaml", "requirements.txt", "envs/launcher.py"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "workflow_scripts").symlink_to(ROOT / "workflow_scripts")
    (folder / "inputs/My Model/config.json").touch()
    (folder / "inputs/a.txt").write_text("\n\n".join(f"{i} and " * 20 for i in range(90)))
    for name, body in (("snakemake", "printf '<%s>' \"$@\""), ("python", f'exec "{sys.executable}" "$@"')):
        script = folder / ".venv/bin" / name
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
    (folder / ".venv/complete").touch()
    return folder


def make(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = of_shell() | {"MODEL": "of another program", "TEXT": "too", "IN": "nowhere"}
    return subprocess.run(["make", *arguments], cwd=project, env=environment, capture_output=True, text=True)


def ran(project: Path, *arguments: str) -> list[str]:
    done = make(project, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip("<>\n").split("><")


FIRST, BEST, PAGE = ["--cores", "2"], "results/best/choice.json", "results/report.html"


def test_alone_they_are_the_command(project: Path) -> None:
    """Variables of these names in the environment are not meant for make."""
    assert ran(project, "report", "CORES=2") == [*FIRST, "results/report.html"]
    assert ran(project, "best", "CORES=2") == [*FIRST, BEST]


def test_your_model_and_text(project: Path) -> None:
    given = ["MODEL=inputs/My Model", "TEXT=inputs/a.txt", "SIZE_MB=90"]
    written = project / "results/My-Model-a.yaml"
    (project / PAGE).touch()  # which takes in what is added
    expected = [*FIRST, "--configfile", str(written), BEST, PAGE]
    assert ran(project, "best", "CORES=2", *given) == expected
    study = yaml.safe_load(written.read_text())
    assert study["models"] == {"My-Model": {"source": {"directory": str(project / "inputs/My Model")}}}
    assert study["choose"] == {"max_bits_per_weight": None, "max_size_mb": 90.0}


def test_a_folder_of_its_own(project: Path) -> None:
    folder = project.parent / "my study"
    for more in (["BITS=4"], []):  # the second goes on with the first's
        assert ran(project, "report", "CORES=2", f"IN={folder}", *more) == [
            *FIRST,
            "--directory",
            str(folder),
            "results/report.html",
        ]
        assert yaml.safe_load((folder / "config.yaml").read_text())["choose"] == {"max_bits_per_weight": 4.5}
    (folder / "results").mkdir()
    (folder / PAGE).touch()
    assert ran(project, "best", "CORES=2", f"IN={folder}") == [*FIRST, "--directory", str(folder), BEST, PAGE]


def test_a_mistake_is_one_line_and_nothing_runs(project: Path) -> None:
    done = make(project, "report", "MODEL=inputs/none/here")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("ERROR MODEL=inputs/none/here: no such directory or file; give a model's directory")
    assert "Traceback" not in done.stderr


def test_a_misspelt_variable_is_no_study_of_something_else(project: Path) -> None:
    done = make(project, "-j2", "report", "MODL=inputs/My Model", "TEXT=inputs/a.txt")
    assert done.returncode == 2 and done.stdout == ""
    assert "MODL: no such variable; `make report` takes MODEL, TEXT, SIZE_MB" in done.stderr
    assert not list((project / "results").iterdir())
