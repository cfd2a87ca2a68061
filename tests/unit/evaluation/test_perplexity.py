"""NLL, KL divergence and agreement against slow loops and against transformers' own loss."""

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quant.comparison.paired import summary_row
from quant.data.tokens import Tokens, fingerprint, save
from quant.errors import InputError
from quant.evaluation import perplexity
from quant.evaluation.perplexity import (
    Head,
    Reference,
    evaluate,
    kl_divergence,
    load_model,
    log_probabilities,
    padded,
    read_reference,
    token_nll,
)
from quant.files import tensorfile
from tests.unit import reference as slow
from tests.unit.calibration.test_blocks import ARCHITECTURES, COMMON, TUPLES, saved

SUMMARY = {"bits_per_weight": 4.0, "quantize_s": 1.0, "storage": "simulated", "storage_reason": "keep: awq"}


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


def test_kl_equals_loop() -> None:
    p, q = logits_of(25, seed=1), logits_of(25, seed=2)
    found = kl_divergence(log_probabilities(p), log_probabilities(q))
    np.testing.assert_allclose(found.numpy(), slow.kl(p.double().numpy(), q.double().numpy()), rtol=1e-5)
    assert (found > 0).all()
    np.testing.assert_allclose(kl_divergence(log_probabilities(p), log_probabilities(p)).numpy(), 0, atol=1e-6)


def test_kl_renormalises_what_float16_kept() -> None:
    p, q = logits_of(25, vocab=2000, seed=1), logits_of(25, vocab=2000, seed=2)
    kept = log_probabilities(p).half()
    found = kl_divergence(kept, log_probabilities(q)).numpy()
    np.testing.assert_allclose(found, slow.kl(kept.double().numpy(), q.double().numpy()), rtol=1e-4)
    np.testing.assert_allclose(found, slow.kl(p.double().numpy(), q.double().numpy()), rtol=1e-2)


def test_impossible_tokens_add_nothing_to_kl() -> None:
    """0·log 0 = 0: a model may mask padded vocabulary entries with the least number there is."""
    p, q = logits_of(5, seed=1), logits_of(5, seed=2)
    expected = kl_divergence(log_probabilities(p).half(), log_probabilities(q))
    masked = [torch.cat([t, torch.full((5, 1), torch.finfo(torch.float32).min)], 1) for t in (p, q)]
    found = kl_divergence(log_probabilities(masked[0]).half(), log_probabilities(masked[1]))
    torch.testing.assert_close(found, expected)


def seen(parts: list[Tensor], tokens: int, stored: Tensor | None) -> Reference:
    found = Reference(tokens, stored)
    for part in parts:
        if found.done < found.tokens:
            found.see(part)
    return found


@pytest.mark.parametrize("tokens", [1, 7, 20, 29, 30])
@pytest.mark.parametrize("chunk", [4, 512])
def test_reference_over_several_calls_equals_one(monkeypatch: pytest.MonkeyPatch, tokens: int, chunk: int) -> None:
    original, method = logits_of(30, seed=1), logits_of(30, seed=1) + 0.5 * logits_of(30, seed=2)
    split = [original[:11], original[11:12], original[12:]]
    monkeypatch.setattr(perplexity, "CHUNK", 512)
    stored = torch.cat(seen([original], tokens, None).kept)
    whole = seen([method], tokens, stored).divergence()
    monkeypatch.setattr(perplexity, "CHUNK", chunk)
    again = torch.cat(seen(split, tokens, None).kept)
    assert stored.dtype == torch.float16 and len(stored) == tokens
    assert torch.equal(again, stored)
    found = seen([method[:5], method[5:25], method[25:]], tokens, stored).divergence()
    assert found.kl == pytest.approx(whole.kl, rel=1e-9)
    assert found[1:] == whole[1:] and found.tokens == tokens
    expected = slow.kl(original[:tokens].double().numpy(), method[:tokens].double().numpy())
    assert found.kl == pytest.approx(sum(expected) / tokens, rel=1e-2)
    agreed = [a.argmax() == b.argmax() for a, b in zip(original[:tokens], method[:tokens], strict=True)]
    assert found.top1_agreement == pytest.approx(sum(map(int, agreed)) / tokens)


def test_reference_of_the_same_model() -> None:
    logits = logits_of(30)
    stored = torch.cat(seen([logits], 30, None).kept)
    found = seen([logits], 30, stored).divergence()
    assert found.kl == pytest.approx(0, abs=1e-5) and found.top1_agreement == 1


def test_read_reference_refuses_other_tokens(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    tensorfile.save(path, {"log_probabilities": torch.zeros(2, 3)}, {"token_fingerprint": json.dumps("aaaa")})
    assert read_reference(path, token_fingerprint="aaaa").shape == (2, 3)
    with pytest.raises(InputError, match=r"aaaa.*bbbb") as caught:
        read_reference(path, token_fingerprint="bbbb")
    assert "\n" not in str(caught.value)


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


def test_run_writes_original_and_method(
    tiny_checkpoint: Path, model: nn.Module, ragged: Tokens, tmp_path: Path
) -> None:
    """The method here is the model itself: no divergence, the same NLL."""
    tokens_path, kept = str(tmp_path / "tokens.safetensors"), str(tmp_path / "reference.safetensors")
    save(tokens_path, ragged.sequences, {})
    dataset: dict[str, Any] = {"kl_tokens": 10, "protocol": "samples", "seq_len": 12}
    compute = {"device": "cpu", "dtype": "auto", "batch_tokens": 25}
    config = str(tiny_checkpoint / "config.json")
    names = {"model": "m", "method": "original", "dataset": "d"}
    perplexity.run(config, tokens_path, dataset, compute, names, str(tmp_path / "a.json"), reference_out=kept)
    (tmp_path / "record.json").write_text(json.dumps({"summary": SUMMARY, "provenance": {}}))
    perplexity.run(
        config, tokens_path, dataset, compute, names | {"method": "same"}, str(tmp_path / "b.json"),
        reference_in=kept, record=str(tmp_path / "record.json"),
    )  # fmt: skip
    original, same = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert original["sequences"] == same["sequences"]
    assert (original["kl"], original["top1_agreement"], original["kl_tokens"]) == (0, 1, 10)
    assert same["kl"] == pytest.approx(0, abs=1e-5) and same["top1_agreement"] == 1
    assert (original["bits_per_weight"], same["bits_per_weight"]) == (32, 4)
    assert original["size_mb"] == (tiny_checkpoint / "model.safetensors").stat().st_size / 1e6
    row = summary_row(same, original, 99, 0)
    nlls: list[float] = []
    for sequence in ragged.sequences:
        with torch.inference_mode():
            logits = model(sequence[None]).logits[0, :-1]
        nlls += slow.nll(logits.double().numpy(), sequence[1:].tolist())
    assert row["ppl"] == pytest.approx(slow.perplexity(nlls), rel=1e-5)
    assert row["nll"] == pytest.approx(sum(nlls) / len(nlls), rel=1e-5) and row["tokens"] == len(nlls)
    assert (row["delta_nll"], row["delta_nll_low"], row["delta_nll_high"]) == (0, 0, 0)
    assert not list(tmp_path.glob(".*"))
