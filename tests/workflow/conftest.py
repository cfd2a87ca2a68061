"""One whole run of a tiny study, shared by the tests that only look, copied by those that change something."""

import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests import tiny


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A clone in which the tiny study has run to results/report.html: one for all workers, made by the first."""
    common = tmp_path_factory.getbasetemp()
    common = common if worker_id == "master" else common.parent
    folder, complete = common / "study", common / "study.complete"
    with FileLock(common / "study.lock"):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            done = tiny.snakemake(tiny.clone(folder), "results/report.html")
            assert done.returncode == 0, done.stdout + done.stderr
            complete.touch()
    return folder


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    """A copy of the finished study, time stamps kept."""
    return Path(shutil.copytree(study, tmp_path / "copy", copy_function=shutil.copy2))
