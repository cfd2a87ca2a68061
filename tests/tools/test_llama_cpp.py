"""GGUF exports in llama.cpp."""

from collections.abc import Callable
from pathlib import Path

import pytest

from quant.errors import InputError
from tests.tools.conftest import expected, exported, generate


def test_gguf(name: str, python: Callable[[str], Path], checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Token ids of the prompts and greedy tokens equal transformers' on the packed checkpoint."""
    alone = python("llama.cpp")
    try:
        model = exported(checkpoints[name], tmp_path, "gguf") / "model.gguf"
    except InputError as error:
        pytest.skip(str(error))
    assert generate("llama.cpp", alone, [model], "auto")[0] == expected(checkpoints[name], "float32")
