"""Packed checkpoints in an environment of nothing but transformers, torch and compressed-tensors."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools.conftest import PROMPTS, generate


@pytest.mark.parametrize(
    ("version", "more"), [("0.17.0", ["psutil"]), ("0.17.1", ["psutil"]), ("0.18.0", []), ("0.19.0", [])]
)
def test_every_grid_loads_and_generates_with(
    version: str, more: list[str], python: Callable[[str], Path], checkpoints: dict[str, Path]
) -> None:
    """The same tokens in float32 as in this project's environment; more: imported there though not asked for."""
    alone = python("transformers")
    pip = [alone, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "uninstall", "--yes", "psutil"], check=True)
    subprocess.run([*pip, "install", f"compressed-tensors=={version}", *more], check=True)
    folders = list(checkpoints.values())
    found = generate("transformers", alone, folders, "float32")
    assert len(found) == len(folders) and all(len(tokens) == len(PROMPTS) for tokens in found)
    assert found == generate("transformers", sys.executable, folders, "float32")
