"""Where and how forward passes run, and what happens where a GPU's memory does not hold a batch."""

import json
from pathlib import Path

import pytest
import torch

from quant.errors import InputError
from quant.runtime.compute import Compute

AUTO = {"device": "auto", "dtype": "auto", "batch_tokens": "auto", "threads": 2}


@pytest.mark.parametrize(
    ("options", "gpu", "expected"),
    [
        ({}, False, ("cpu", torch.float32, 1024)),
        ({}, True, ("cuda", torch.bfloat16, 16384)),
        ({"device": "cpu"}, True, ("cpu", torch.float32, 1024)),
        ({"device": "cuda:1", "dtype": "float16", "batch_tokens": 64}, True, ("cuda:1", torch.float16, 64)),
    ],
)
def test_auto_is_what_the_machine_and_the_model_have(
    options: dict, gpu: bool, expected: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    assert Compute.of(AUTO | options, tmp_path) == expected


def test_batches_are_halved_until_they_fit() -> None:
    """Batches hold whole sequences, of 10 tokens here: 64, of which 6 fit, then 3; two fit."""
    tried = []

    def work(compute: Compute) -> str:
        tried.append(compute)
        if compute.batch_tokens > 25:
            raise torch.OutOfMemoryError
        return "done"

    assert Compute("cpu", torch.float32, 64).halving(work, [torch.arange(10)] * 7) == "done"
    assert tried == [("cpu", torch.float32, n) for n in (64, 30, 10)]


def test_a_sequence_that_does_not_fit_ends_in_one_line() -> None:
    def work(compute: Compute) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(InputError, match="a sequence of 10 tokens does not fit"):
        Compute("cpu", torch.float32, 64).halving(work, [torch.arange(10)])
