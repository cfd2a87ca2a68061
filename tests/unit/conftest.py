"""Models for convert."""

import shutil
from pathlib import Path

import pytest

from tests.unit.model_files import build


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(base, tmp_path / "model"))
