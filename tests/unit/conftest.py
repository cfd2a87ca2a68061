"""Models for convert, and models whose scales fold."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.model_files import build
from tests.unit.recipe.folded import Case, cases


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(base, tmp_path / "model"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Of every known architecture, by name."""
    return cases(tmp_path_factory)
