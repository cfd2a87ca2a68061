"""One whole run of a tiny study, shared by the tests that only look, copied by those that change something."""

import shutil
from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the tiny study has run to results/report.html."""
    folder = tiny.clone(tmp_path_factory.mktemp("study") / "clone")
    done = tiny.snakemake(folder, "results/report.html")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    """A copy of the finished study, time stamps kept."""
    return Path(shutil.copytree(study, tmp_path / "copy", copy_function=shutil.copy2))
