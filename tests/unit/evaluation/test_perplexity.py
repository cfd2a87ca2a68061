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

from quant.data.tokens import Tokens, fingerprint
from quant.errors import InputError
from quant.evaluation import perplexity
from quant.evaluation.divergence import Reference
from quant.evaluation.perplexity import (
    Head,
    evaluate,
    load_model,
    padded,
    token_nll,
)
from tests.unit import reference as slow
from tests.unit.calibration.test_blocks import ARCHITECTURES, COMMON, TUPLES, saved


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> nn.Module:
    return load_model(tiny_checkpoint, "cpu", torch.float32)


@pytest.fixture(scope="module")
def ragged() -> Tokens:
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(0, 256, (length,), generator=generator) for length in (9, 4, 12, 12, 2, 7)]
    return Tokens(sequences, fingerprint(sequences), {})


def logits_of(n: int, vocab: int = 20, seed: int = 0) -> Tensor:
    return 4 * torch.randn(n, vocab, generator=torch.Generator().manual_seed(seed))


def fresh() -> Reference:
    return Reference(10**6, None)


def test_token_nll() -> None:
    logits, targets = logits_of(30) * 10, torch.arange(30) % 20
    expected = slow.nll(logits.double().numpy(), targets.tolist())
    found = token_nll(logits, targets)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 25, 1000])
def test_nll_equals_loop_and_transformers_loss(model: nn.Module, ragged: Tokens, batch_tokens: int) -> None:
    rows, speed = evaluate(model, ragged, "cpu", batch_tokens, fresh())
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
    whole, _ = evaluate(model, ragged, "cpu", 25, fresh())
    monkeypatch.setattr(perplexity, "CHUNK", 3)
    parts, _ = evaluate(model, ragged, "cpu", 25, fresh())
    assert [row["nll"] for row in parts] == pytest.approx([row["nll"] for row in whole], rel=1e-6)


HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ARCHITECTURES[name] for name in ("llama", "granite", "gemma2", "gpt_neox", "opt", "opt_350m", "phi3")},
    "cohere": ("CohereConfig", COMMON | {"logit_scale": 0.2}),
    "falcon": TUPLES["falcon"],
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_alone_gives_the_models_logits(name: str, tmp_path: Path) -> None:
    """With its scaling and soft-capping; or the model's own logits where it does not come apart."""
    plain = saved(*HEADS[name], tmp_path)
    ids = torch.randint(3, 256, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        head, whole = Head(plain, "cpu"), plain(ids, use_cache=False).logits.flatten(0, 1)
        assert head.splits != name.startswith("opt"), "OPT calls a part of its body"
        states = head.states(ids).flatten(0, 1)
        for some in torch.arange(27).split(4):
            torch.testing.assert_close(head.logits(states[some]), whole[some], rtol=1e-5, atol=1e-5)
        again = plain(ids, use_cache=False).logits.flatten(0, 1)
    assert torch.equal(again, whole), "the model is left as it was"


@pytest.mark.parametrize("name", ["llama", "granite", "gemma2"])
def test_a_head_with_rows_added_gives_the_models_logits(name: str, tmp_path: Path) -> None:
    """As on a GPU, whose products want widths that 8 divides."""
    config, changes = ARCHITECTURES[name]
    plain = saved(config, changes | {"vocab_size": 251}, tmp_path)
    ids = torch.randint(3, 251, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        head, whole = Head(plain, "cpu"), plain(ids, use_cache=False).logits.flatten(0, 1)
        weight, head._padded = plain.lm_head.weight, padded(plain.lm_head)
        assert head.splits and head._padded.shape[0] == 256
        widths: list[int] = []
        hook = plain.lm_head.register_forward_hook(lambda module, args, out: widths.append(out.shape[-1]))
        torch.testing.assert_close(head.logits(head.states(ids).flatten(0, 1)), whole, rtol=1e-5, atol=1e-5)
        hook.remove()
    assert widths == [256]
    assert plain.lm_head.weight is weight and padded(nn.Linear(4, 8, bias=False)) is None


class Odd(nn.Module):
    """A causal LM whose body is called by another name."""

    base_model_prefix = "body"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.body, self.lm_head, self.config = model.model, model.lm_head, model.config

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        states = self.body.embed_tokens(input_ids)
        return SimpleNamespace(logits=self.lm_head(states))

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


def test_a_model_that_does_not_come_apart_gives_whole_logits(model: nn.Module, ragged: Tokens, caplog: Any) -> None:
    caplog.set_level("INFO", "quant")
    odd = Odd(model)
    rows, _ = evaluate(odd, ragged, "cpu", 25, fresh())
    assert "Odd" in caplog.text
    with torch.inference_mode():
        for row, sequence in zip(rows, ragged.sequences, strict=True):
            logits = odd(sequence[None, :-1]).logits[0]
            expected = slow.nll(logits.double().numpy(), sequence[1:].tolist())
            assert row["nll"] == pytest.approx(sum(expected), rel=1e-5)


@pytest.mark.parametrize("holds", [30, 24, 12])
def test_a_batch_that_does_not_fit_is_halved(model: nn.Module, ragged: Tokens, caplog: Any, holds: int) -> None:
    """Nothing is counted twice: neither the sequences nor their comparison with the reference."""
    wanted = 20
    whole = Reference(wanted, None)
    expected, _ = evaluate(model, ragged, "cpu", 1000, whole)
    small, stored = Small(model, holds), torch.cat(whole.kept)
    for reference in (Reference(wanted, None), Reference(wanted, stored)):
        rows, _ = evaluate(small, ragged, "cpu", 1000, reference)
        assert [row["nll"] for row in rows] == pytest.approx([row["nll"] for row in expected], rel=1e-6)
        assert reference.done == wanted
        if reference.stored is None:
            assert torch.allclose(torch.cat(reference.kept).float(), stored.float(), atol=1e-2)
        else:
            assert reference.divergence().kl == pytest.approx(0, abs=1e-5) and reference.divergence()[1:] == (1, wanted)
    assert "do not fit" in caplog.text


def test_a_sequence_that_does_not_fit_is_refused(model: nn.Module, ragged: Tokens) -> None:
    with pytest.raises(InputError, match="12 tokens does not fit") as caught:
        evaluate(Small(model, 11), ragged, "cpu", 1000, fresh())
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
        evaluate(broken, ragged, "cpu", 25, fresh())
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
