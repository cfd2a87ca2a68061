"""A library in an environment of its own: its Python, and a run of its worker by it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from quant.errors import InputError
from quant.files.artifacts import read_json, write_plain_json
from quant.runtime import cards

SCRIPTS = Path(__file__).resolve().parents[2]


def interpreter_of(environment: Path, title: str) -> Path:
    """The Python of the environment that build_library made, or found."""
    python = environment / "bin" / "python"
    complete = environment / "complete"
    if not python.is_file() and complete.is_file():
        python = Path(complete.read_text(encoding="utf-8").strip())
    if not python.is_file():
        raise InputError(f"{python}: no such file; delete {environment} and run again to rebuild {title}'s environment")
    return python.absolute()


def run_worker(python: Path, name: str, title: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Runs {name}_worker.py, its output into our log; returns its result."""
    write_plain_json(folder / "job.json", job)
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    variables |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONNOUSERSITE": "1"}
    variables |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # what torch asks for where its products are to repeat
    if job["device"] == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = ""  # it takes a GPU wherever it finds one
    command = [str(python), "-u", str(SCRIPTS / f"{name}_worker.py"), str(folder / "job.json")]
    said = "it said nothing"
    with subprocess.Popen(
        command,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=cards.held(),
    ) as process:
        for line in process.stdout or ():
            if line.strip():
                said = line.strip()
                print(said, file=sys.stderr)
    if process.returncode:
        if "OutOfMemoryError" in said:
            raise torch.OutOfMemoryError(said)
        raise InputError(f"{title} ended with status {process.returncode} ({said}); the log has all that it said")
    return read_json(Path(job["out"]) / "result.json")
