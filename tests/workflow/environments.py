"""Libraries' environments, each made once by its own rule and kept beside other temporary files, under a name that
changes with its requirements; clones link to it."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from quant.files.artifacts import digest
from tests import tiny


def environment_of(name: str) -> Path:
    """results/environments/{name}, made by rule build_library where an earlier run has not."""
    requirements = tiny.ROOT / f"envs/{name}.txt"
    kept = Path(tempfile.gettempdir()) / f"quant-{name}-{digest(requirements.read_bytes())}"
    complete = f"results/environments/{name}/complete"
    with FileLock(f"{kept}.lock"):
        if not (kept / complete).is_file():
            shutil.rmtree(kept, ignore_errors=True)
            tiny.clone(kept)
            done = tiny.snakemake(kept, complete)
            seen = done.stdout + done.stderr
            if done.returncode:
                shutil.rmtree(kept)
                if "pip install failed" in seen:
                    pytest.skip(f"pip cannot install {name}'s environment here")
                raise AssertionError(seen)
    return kept / f"results/environments/{name}"


def link(clone: Path, environment: Path) -> None:
    """An environment in a clone; newer than the clone's copy of its requirements."""
    (clone / "results/environments").mkdir(parents=True, exist_ok=True)
    (clone / "results/environments" / environment.name).symlink_to(environment)
    for name in ("complete", "packages.txt"):
        os.utime(environment / name)
