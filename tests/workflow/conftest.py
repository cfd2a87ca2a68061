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
            tiny.finished(tiny.clone(folder))
            complete.touch()
    return folder


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    """A copy of the finished study, time stamps kept."""
    return Path(shutil.copytree(study, tmp_path / "copy", copy_function=shutil.copy2))


@pytest.fixture(scope="module")
def edited(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished study whose files are edited one at a time."""
    folder = Path(shutil.copytree(study, tmp_path_factory.mktemp("edited") / "copy", copy_function=shutil.copy2))
    shutil.copytree(folder / "inputs/model", folder / "inputs/second", copy_function=shutil.copy2)
    return folder
