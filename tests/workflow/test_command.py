"""The command as it stands in README, letter by letter, through the launcher that .venv has."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from tests import tiny

LAUNCHER = tiny.ROOT / "envs/launcher.py"
LITERAL = "snakemake --cores 1 --resources gpu=1 results/report.html"


def run(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """A command line in a folder, where `snakemake` is the launcher."""
    command = shlex.split(line)
    assert command[0] == "snakemake"
    given = [sys.executable, str(LAUNCHER), *command[1:]]
    return subprocess.run(given, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def default(copy: Path) -> Path:
    """A finished study whose config.yaml is the tiny one, its report gone."""
    config = yaml.safe_load((copy / "config.yaml").read_text())
    update_config(config, tiny.OVERLAY)
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    (copy / "results/report.html").unlink()
    return copy


def test_the_literal_command_makes_the_report(default: Path) -> None:
    done = run(default, LITERAL)
    assert done.returncode == 0, done.stderr
    assert (default / "results/report.html").is_file() and f"Report: {default}/results/report.html" in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        f"{LITERAL} --dry-run",
        f"{LITERAL} results/synthetic.json -n",
        "snakemake -n --cores 1 --configfile tiny.yaml results/report.html",
        "snakemake --cores 1 --workflow-profile profiles/default --set-threads quantize=1 results/report.html -n",
        "snakemake -n --cores 1 --resources gpu=1 --config 'comparison={resamples: 999}' -- results/report.html",
        "snakemake -n --cores 1 --until report results/report.html",
    ],
)
def test_targets_behind_options_with_several_values(default: Path, line: str) -> None:
    done = run(default, line)
    assert done.returncode == 0, done.stderr
    assert tiny.pending_in(done.stdout + done.stderr) == {"report": 1}


def test_what_snakemake_refuses_it_still_refuses(default: Path) -> None:
    done = run(default, "snakemake --cores 1 --resources gpu=1 --bogus results/report.html")
    assert done.returncode and "unrecognized arguments: --bogus" in done.stderr


def test_the_makefile_puts_it_below_pips_first_lines(tmp_path: Path) -> None:
    """What the recipe does to pip's script, whose first lines name the interpreter, in one line or in three."""
    recipe = (
        (tiny.ROOT / "Makefile").read_text().partition(".venv/complete: requirements.txt")[2].partition("\ttouch")[0]
    )
    steps = [line.strip() for line in recipe.splitlines()[1:] if "launcher" in line]
    assert len(steps) == 3
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs/launcher.py").write_bytes(LAUNCHER.read_bytes())
    script = tmp_path / ".venv/bin/snakemake"
    script.parent.mkdir(parents=True)
    heads = [f"#!{sys.executable}\n", f"#!/bin/sh\n'''exec' \"{sys.executable}\" \"$0\" \"$@\"\n' '''\n"]
    for head in heads:
        for rest in ("# -*- coding: utf-8 -*-\nimport re\n", "import sys\nfrom x import y\n"):
            script.write_text(f"{head}{rest}raise SystemExit(3)\n")
            for _ in range(2):  # a second time on what the first left
                for step in steps:
                    subprocess.run(step, shell=True, cwd=tmp_path, check=True)
                assert script.read_text() == head + LAUNCHER.read_text() and os.access(script, os.X_OK)
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)
