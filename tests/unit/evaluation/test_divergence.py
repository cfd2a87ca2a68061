"""KL divergence and agreement over every prediction against slow loops over whole distributions."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quant.data.tokens import Tokens, fingerprint
from quant.errors import InputError
from quant.evaluation import divergence
from quant.evaluation.divergence import budgeted, compare, keeping, kl_divergence, reading, whole_budget
from quant.evaluation.head import Head, Parts
from quant.evaluation.perplexity import measure
from tests.unit import reference as slow
from tests.unit.calibration.architectures import ARCHITECTURES, COMMON, saved
from tests.unit.evaluation.undivided import Undivided

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ARCHITECTURES[name] for name in ("llama", "granite", "opt_350m")},
    "gemma2": ("Gemma2Config", COMMON | {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 1.5}),
}
MADE_FROM = {"token_fingerprint": "aaaa"}


def logits_of(n: int, vocab: int = 20, seed: int = 0) -> Tensor:
    return 4 * torch.randn(n, vocab, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 8, 25])
def test_kl_and_agreement_equal_loops(n: int) -> None:
    p = logits_of(n, seed=1)
    q = p + 0.4 * logits_of(n, seed=2)
    kl, agreed = compare(p, q)
    np.testing.assert_allclose(kl.numpy(), slow.kl(p.double().numpy(), q.double().numpy()), rtol=1e-5, atol=1e-6)
    assert agreed.tolist() == [max(a) == a[b.index(max(b))] for a, b in zip(p.tolist(), q.tolist(), strict=True)]
    assert (kl > 0).all() and compare(p, p)[0].abs().max() == 0 and compare(p, p)[1].all()


@pytest.mark.parametrize("least", [torch.finfo(torch.float32).min, -torch.inf])
def test_impossible_tokens_add_nothing_to_kl(least: float) -> None:
    """0·log 0 = 0: a model may mask padded vocabulary entries with the least number there is."""
    p, q = logits_of(5, seed=1), logits_of(5, seed=2)
    masked = [torch.cat([t, torch.full((5, 1), least)], 1) for t in (p, q)]
    torch.testing.assert_close(compare(*masked)[0], compare(p, q)[0])
    log_p, log_q = (torch.log_softmax(t, -1) for t in masked)
    torch.testing.assert_close(kl_divergence(log_p, log_q), compare(p, q)[0])


@pytest.fixture(scope="module")
def ragged() -> Tokens:
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(3, 256, (length,), generator=generator) for length in (9, 4, 12, 12, 2, 7)]
    return Tokens(sequences, fingerprint(sequences), {})


@pytest.mark.parametrize(
    ("budget", "counts"), [(None, [8, 3, 11, 11, 1, 6]), (10, [8, 2, 0, 0, 0, 0]), (3, [3, 0, 0, 0, 0, 0])]
)
def test_the_first_predictions_within_the_budget(ragged: Tokens, budget: int | None, counts: list[int]) -> None:
    assert budgeted(ragged.sequences, budget) == counts


def changed(model: nn.Module, what: str) -> nn.Module:
    """The model with noise on the parameters of that name."""
    method = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in method.named_parameters():
        if what in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return method


def compared(original: nn.Module, method: nn.Module, ragged: Tokens, path: Path, batch: int, budget: int | None,
             load: Callable[[], Head]) -> list[dict[str, Any]]:  # fmt: skip
    """As two evaluations do it, by a file."""
    with torch.inference_mode():
        head = Head(original, "cpu")
        with keeping(path, head, budgeted(ragged.sequences, whole_budget(head, budget)), MADE_FROM) as keep:
            measure(head, ragged, 25, keep=keep)
        other = Head(method, "cpu")
        with reading(path, other, load, **MADE_FROM) as reference:
            return measure(other, ragged, batch, reference)[0]


def check(
    rows: list[dict[str, Any]], original: nn.Module, method: nn.Module, ragged: Tokens, budget: int | None, rtol: float
) -> None:
    """Against loops over both models' distributions, in float64."""
    left = budget or 10**9
    for row, ids in zip(rows, ragged.sequences, strict=True):
        count = min(left, len(ids) - 1)
        left -= count
        with torch.inference_mode():
            p, q = (model(ids[None], use_cache=False).logits[0, :count].double() for model in (original, method))
        assert row["kl_tokens"] == count
        assert row["kl"] == pytest.approx(sum(slow.kl(p.numpy(), q.numpy())), rel=rtol, abs=3e-7 * count)
        assert row["agreed"] == int((p.argmax(1) == q.argmax(1)).sum())


def refused() -> Head:
    raise AssertionError("the original need not be loaded")


@pytest.mark.parametrize("budget", [None, 10])
@pytest.mark.parametrize("batch", [1, 1000])  # one text at a time, and padded
@pytest.mark.parametrize("name", MODELS)
def test_kl_is_that_of_whole_distributions(
    name: str, batch: int, budget: int | None, ragged: Tokens, tmp_path: Path
) -> None:
    original = saved(*MODELS[name], tmp_path / "model")
    method = changed(original, "layers")
    rows = compared(original, method, ragged, tmp_path / "kept.safetensors", batch, budget, refused)
    check(rows, original, method, ragged, budget, 1e-4)
    assert sum(row["kl"] for row in rows) > 0.01


@pytest.mark.parametrize("change", ["lm_head", "softcap", "scaling"])
def test_a_method_with_another_head_is_compared_by_the_originals(
    change: str, ragged: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights, or the same ones whose logits the configuration changes."""
    config, changes = MODELS["granite" if change == "scaling" else "gemma2"]
    original = saved(config, changes | {"tie_word_embeddings": False}, tmp_path / "model")
    method = changed(original, change)
    if change == "softcap":
        method.config.final_logit_softcapping = 1.4
    if change == "scaling":
        method.config.logits_scaling = 1.9
    loaded: list[Head] = []

    def load() -> Head:
        loaded.append(Head(original, "cpu"))
        return loaded[0]

    rows = compared(original, method, ragged, tmp_path / "kept.safetensors", 1000, None, load)
    check(rows, original, method, ragged, None, 1e-4)
    assert len(loaded) == 1


def test_a_model_that_does_not_come_apart_keeps_distributions(
    ragged: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float16, within a budget of bytes."""
    monkeypatch.setattr(divergence, "WHOLE_BYTES", 2 * 256 * 15)
    plain = saved(*MODELS["llama"], tmp_path / "model")
    original, method = Undivided(plain), Undivided(changed(plain, "layers"))
    assert whole_budget(Head(original, "cpu"), None) == 15 and whole_budget(Head(original, "cpu"), 10) == 10
    rows = compared(original, method, ragged, tmp_path / "kept.safetensors", 1000, None, refused)
    check(rows, original, method, ragged, 15, 1e-2)


def test_states_of_other_tokens_are_refused(ragged: Tokens, tmp_path: Path) -> None:
    model, path = saved(*MODELS["llama"], tmp_path / "model"), tmp_path / "kept.safetensors"
    head = Head(model, "cpu")
    with torch.inference_mode(), keeping(path, head, budgeted(ragged.sequences, 10), MADE_FROM) as keep:
        measure(head, ragged, 25, keep=keep)
    assert head.parts is Parts.BODY
    with (
        pytest.raises(InputError, match=r"aaaa.*bbbb") as caught,
        reading(path, head, refused, token_fingerprint="bbbb"),
    ):
        pass
    assert "\n" not in str(caught.value)
