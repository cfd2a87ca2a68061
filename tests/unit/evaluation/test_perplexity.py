"""NLL against slow loops and against transformers' own loss."""

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quant.data.tokens import Tokens
from quant.errors import InputError
from quant.evaluation import head
from quant.evaluation.divergence import Reference
from quant.evaluation.head import Head
from quant.evaluation.perplexity import evaluate, load_model, measure, token_nll
from tests.unit import reference as slow
from tests.unit.recipe.cases import recast


def logits_of(n: int, vocab: int = 20, seed: int = 0) -> Tensor:
    return 4 * torch.randn(n, vocab, generator=torch.Generator().manual_seed(seed))


def test_token_nll() -> None:
    logits, targets = logits_of(30) * 10, torch.arange(30) % 20
    expected = slow.nll(logits.double().numpy(), targets.tolist())
    found = token_nll(logits, targets)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 25, 1000])
def test_nll_equals_loop_and_transformers_loss(model: nn.Module, ragged: Tokens, batch_tokens: int) -> None:
    rows, speed = evaluate(model, ragged, "cpu", batch_tokens)
    assert [row["sequence"] for row in rows] == list(range(6))
    assert [row["tokens"] for row in rows] == [len(s) - 1 for s in ragged.sequences]
    assert speed > 0
    for row, sequence in zip(rows, ragged.sequences, strict=True):
        with torch.inference_mode():
            out = model(sequence[None], labels=sequence[None])
        expected = slow.nll(out.logits[0, :-1].double().numpy(), sequence[1:].tolist())
        assert row["nll"] == pytest.approx(sum(expected), rel=1e-5)
        assert row["nll"] == pytest.approx(out.loss.item() * (len(sequence) - 1), rel=1e-5)


def test_long_sequences_are_summed_over_all_chunks(
    model: nn.Module, ragged: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = evaluate(model, ragged, "cpu", 25)
    monkeypatch.setattr(head, "CHUNK", 3)
    parts, _ = evaluate(model, ragged, "cpu", 25)
    assert [row["nll"] for row in parts] == pytest.approx([row["nll"] for row in whole], rel=1e-6)


@pytest.mark.parametrize("holds", [30, 24, 12])
def test_a_batch_that_does_not_fit_is_halved(model: nn.Module, ragged: Tokens, caplog: Any, holds: int) -> None:
    """Nothing is counted twice: neither the sequences, nor their comparison with the reference, nor what is kept."""
    whole, kept, again = Head(model, "cpu"), dict[int, Tensor](), list[int]()
    expected, _ = measure(whole, ragged, 1000, keep=kept.__setitem__)
    assert [len(kept[i]) for i in range(6)] == [row["tokens"] for row in expected]
    reference = Reference(lambda i: kept[i] * 0.9, whole.logits)
    compared, _ = measure(whole, ragged, 1000, reference)
    rows, _ = measure(Head(Small(model, holds), "cpu"), ragged, 1000, reference, lambda i, states: again.append(i))
    for key, rest, rel in (
        ("nll", expected, 1e-6),
        ("nll", compared, 1e-6),
        ("kl", compared, 1e-4),
        ("agreed", compared, 0),
    ):
        assert [row[key] for row in rows] == pytest.approx([row[key] for row in rest], rel=rel)
    assert [row["kl_tokens"] for row in rows] == [row["tokens"] for row in rows]
    assert again == list(range(6)) and "do not fit" in caplog.text


def test_a_sequence_that_does_not_fit_is_refused(model: nn.Module, ragged: Tokens) -> None:
    with pytest.raises(InputError, match="12 tokens does not fit") as caught:
        evaluate(Small(model, 11), ragged, "cpu", 1000)
    assert "\n" not in str(caught.value)


class Small(nn.Module):
    """A model on a device whose memory holds so many logits; they fail after a part of them was seen."""

    base_model_prefix = "model"

    def __init__(self, whole: nn.Module, holds: int) -> None:
        super().__init__()
        self.whole, self.config, self.holds, self.model = whole, whole.config, holds, self.Body(whole.model)

    class Body(nn.Module):
        """Remembers how large its last batch was."""

        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body, self.size = body, 0

        def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
            Small.size = input_ids.numel()
            return self.body(input_ids=input_ids, use_cache=use_cache)

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        states = self.model(input_ids=input_ids, use_cache=use_cache).last_hidden_state
        if Small.size > self.holds:
            raise torch.OutOfMemoryError("no more")
        return SimpleNamespace(logits=self.whole.lm_head(states))

    def get_output_embeddings(self) -> nn.Module:
        return self.whole.lm_head


def test_broken_model_is_refused(model: nn.Module, ragged: Tokens) -> None:
    broken = copy.deepcopy(model)
    nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(InputError, match="not finite") as caught:
        evaluate(broken, ragged, "cpu", 25)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["absent", "truncated"])
def test_broken_checkpoint_is_refused_in_one_line(tiny_checkpoint: Path, tmp_path: Path, fault: str) -> None:
    checkpoint = tmp_path / "checkpoint"
    if fault == "truncated":
        shutil.copytree(tiny_checkpoint, checkpoint)
        weights = checkpoint / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(InputError, match="checkpoint") as caught:
        load_model(checkpoint, "cpu", torch.float32)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_is_read_in_part_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """transformers draws a weight that is not there, and passes over a part of a packed one, with a warning."""

    def lack(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]

    def add(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight_global_scale"] = torch.ones(1)

    for change, said in ((lack, "finds no model.layers.1.mlp.up_proj.weight in it"), (add, "does not read its model")):
        with pytest.raises(InputError, match=said):
            load_model(recast(tiny_checkpoint, tmp_path / change.__name__, change), "cpu", torch.float32)
