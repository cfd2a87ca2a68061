"""A model that goes through its blocks one by one gives what it gives whole, to the bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from quant.calibration.reader import Statistics
from quant.checkpoints import stored
from quant.data.tokens import Tokens, save
from quant.evaluation import by_block, record
from quant.evaluation.by_block import ByBlock, too_large
from quant.evaluation.head import Head, Parts
from quant.evaluation.perplexity import load_model, measure
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.models.structure.linears import all_linears, skeleton
from quant.recipe import keys
from quant.recipe.recipe import Recipe
from quant.runtime import compute
from quant.runtime.compute import Compute
from tests.unit.calibration.architectures import ARCHITECTURES, TUPLES, saved

CPU = Compute("cpu", torch.float32, 25)


# GPT-NeoX's head has another name in files that transformers writes, which convert notes in its own
@pytest.mark.parametrize("name", [*(name for name in ARCHITECTURES if "neox" not in name), "falcon"])
def test_nll_is_the_whole_models_to_the_bit(name: str, ragged: Tokens, tmp_path: Path) -> None:
    plain = saved(*(ARCHITECTURES | TUPLES)[name], tmp_path)
    with torch.inference_mode():
        whole = Head(plain, "cpu")
        expected, _ = measure(whole, ragged, 25)
        head = ByBlock(tmp_path, ragged.sequences, CPU)
        found, speed = measure(head, ragged, 25)
    assert found == expected and speed > 0
    assert head.parts is whole.parts and (head.width, head.vocabulary) == (whole.width, whole.vocabulary)
    with torch.inference_mode():
        smaller, _ = measure(head, ragged, 12)  # as where a batch's logits do not fit
    assert [row["nll"] for row in smaller] == pytest.approx([row["nll"] for row in expected], rel=1e-5)


@pytest.mark.parametrize(
    "recipe", [{"rounding": "nearest", "group_size": 16}, {"symmetric": True, "group_size": -1}], ids=str
)
def test_packed_weights_are_those_that_transformers_unpacks(
    recipe: dict[str, Any], tiny_checkpoint: Path, ragged: Tokens, tmp_path: Path
) -> None:
    linears = all_linears(skeleton(tiny_checkpoint))
    chosen = Recipe.of(keys.defaults() | {"seed": 0, "n_calib": None} | recipe)
    made = quantize_checkpoint(
        Source(tiny_checkpoint, linears),
        Output(tmp_path / "q", tmp_path / "folds"),
        Statistics({}, "m", {}),
        chosen,
        "cpu",
        {},
    )
    assert made["summary"]["storage"] == "packed"
    with torch.inference_mode():
        expected, _ = measure(Head(load_model(tmp_path / "q", "cpu", torch.float32), "cpu"), ragged, 25)
        found, _ = measure(ByBlock(tmp_path / "q", ragged.sequences, CPU), ragged, 25)
    assert found == expected
    with stored.opened(tmp_path / "q") as weights, stored.opened(tiny_checkpoint) as plain:
        assert weights.count() == plain.count()


def test_a_head_without_sequences_gives_logits(ragged: Tokens, tiny_checkpoint: Path) -> None:
    with torch.inference_mode():
        whole, head = Head(load_model(tiny_checkpoint, "cpu", torch.float32), "cpu"), ByBlock(tiny_checkpoint, [], CPU)
        states = whole.states(ragged.sequences[0][None])[0]
        assert head.parts is Parts.BODY and torch.equal(head.logits(states), whole.logits(states))


def test_what_is_too_large_is_said(tiny_checkpoint: Path, monkeypatch: Any, caplog: Any) -> None:
    caplog.set_level("INFO", "quant")
    assert not too_large(tiny_checkpoint, CPU)
    monkeypatch.setattr(by_block, "memory_left", lambda device: 5e8)
    assert too_large(tiny_checkpoint, CPU) and "it runs block by block" in caplog.text


def test_run_writes_what_a_whole_model_writes(
    tiny_checkpoint: Path, ragged: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original, whose states are kept, and a method that is it."""
    save(tmp_path / "tokens", ragged.sequences, {})
    dataset = {"kl_tokens": None, "protocol": "samples", "seq_len": 12}
    config = str(tiny_checkpoint / "config.json")
    subject = record.Subject("m", "original", "d", config, str(tmp_path / "tokens"), dataset,
                       {"device": "cpu", "dtype": "auto", "batch_tokens": 25})  # fmt: skip
    summary = {"bits_per_weight": 4.0, "quantize_s": 1.0, "storage": "simulated", "storage_reason": "", "parameters": 9}
    (tmp_path / "record").write_text(json.dumps({"summary": summary, "provenance": {"versions": {}}}))
    found: dict[bool, list[Any]] = {}
    for large in (False, True):
        if large:
            monkeypatch.setattr(by_block, "memory_left", lambda device: 0)
        kept = str(tmp_path / "kept")
        record.run(subject, record.Original(kept), str(tmp_path / "a"))
        record.run(subject, record.Quantised(kept, config, str(tmp_path / "record")), str(tmp_path / "b"))
        found[large] = [json.loads((tmp_path / name).read_text()) for name in "ab"] + [Path(kept).read_bytes()]
        for each in found[large][:2]:
            del each["tokens_per_s"], each["checksum"]
            each.pop("tokens_per_character", None)  # NaN here
    for one, other in zip(found[True], found[False], strict=True):
        assert one == other
    assert found[True][1]["kl"] == 0


def test_memory_left_is_the_least_of_machine_and_cgroup(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert compute.memory_left("cpu", tmp_path) == 5000 * 1024
    folder = tmp_path / "sys/fs/cgroup"
    folder.mkdir(parents=True)
    for name, said in (
        ("max", "4000000"),
        ("current", "3500000"),
        ("stat", "active_file 100000\ninactive_file 200000"),
    ):
        (folder / f"memory.{name}").write_text(said)
    assert compute.memory_left("cpu", tmp_path) == 800000
    (folder / "memory.max").write_text("max\n")
    assert compute.memory_left("cpu", tmp_path) == 5000 * 1024
