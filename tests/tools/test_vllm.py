"""Packed checkpoints and exports in vLLM, on a CPU."""

from collections.abc import Callable
from pathlib import Path

import pytest

from quant.errors import InputError
from tests.tools.conftest import expected, exported, generate


def test_packed(name: str, python: Callable[[str], Path], checkpoints: dict[str, Path]) -> None:
    """Greedy tokens equal transformers'."""
    alone = python("vllm")
    if name.startswith("8-bit"):
        pytest.skip("vLLM has no product of 8-bit weights on a CPU")
    found = generate("vllm", alone, [checkpoints[name]], "auto")[0]
    if found is None:
        pytest.skip("vLLM has loaded it; its INT4 product on a CPU needs AVX-512")
    assert found == expected(checkpoints[name], "auto")


def test_dense_export(python: Callable[[str], Path], checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Of the first checkpoint: greedy tokens equal transformers'."""
    alone = python("vllm")
    model = exported(next(iter(checkpoints.values())), tmp_path, "dense")
    assert generate("vllm", alone, [model], "float32")[0] == expected(model, "float32")


def test_awq_export(name: str, python: Callable[[str], Path], checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Greedy tokens equal those that transformers gives from the packed checkpoint."""
    alone = python("vllm")
    try:
        model = exported(checkpoints[name], tmp_path, "awq")
    except InputError as error:
        pytest.skip(str(error))
    found = generate("vllm", alone, [model], "auto")[0]
    if found is None:
        pytest.skip("vLLM has loaded it; its INT4 product on a CPU needs AVX-512")
    assert found == expected(checkpoints[name], "auto")
