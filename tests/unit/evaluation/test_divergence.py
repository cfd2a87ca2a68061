"""KL divergence and agreement against slow loops."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from quant.errors import InputError
from quant.evaluation import divergence
from quant.evaluation.divergence import Reference, kl_divergence, log_probabilities, read_reference
from quant.files import tensorfile
from tests.unit import reference as slow


def logits_of(n: int, vocab: int = 20, seed: int = 0) -> Tensor:
    return 4 * torch.randn(n, vocab, generator=torch.Generator().manual_seed(seed))


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
    monkeypatch.setattr(divergence, "CHUNK", 512)
    stored = torch.cat(seen([original], tokens, None).kept)
    whole = seen([method], tokens, stored).divergence()
    monkeypatch.setattr(divergence, "CHUNK", chunk)
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
