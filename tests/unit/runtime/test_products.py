"""Products by oneDNN against float64, wherever an operator of it is there."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quant.runtime import products

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Whatever the processor is; the shapes of what went through it."""
    if not HAS_ONEDNN:
        pytest.skip("this build of PyTorch has no oneDNN")
    monkeypatch.setattr(products, "gains", lambda: True)
    for least in ("LEAST", "LEAST_SCORES"):
        monkeypatch.setattr(products, least, 1)
    monkeypatch.setattr(products, "THREADS", 1024)
    seen: list[tuple[int, ...]] = []
    inner = products._onednn

    def noted(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        seen.append((*x.shape, len(w)))
        return inner(x, w, bias)

    monkeypatch.setattr(products, "_onednn", noted)
    return seen


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def exact(x: Tensor, w: Tensor) -> np.ndarray:
    return x.double().numpy() @ w.double().numpy().T


@pytest.mark.parametrize("shape", [(7, 5, 3), (64, 33, 130), (1, 192, 65)])
def test_linear(shape: tuple[int, int, int], by_onednn: list[tuple[int, ...]]) -> None:
    """Of matrices however they lie, with a bias and without, in batches too."""
    n, n_in, n_out = shape
    x, w, bias = drawn(n, n_in), drawn(n_out, n_in), drawn(n_out)
    for left in (x, x.T.contiguous().T, drawn(n, n_in + 4)[:, 2:-2], x.expand(2, n, n_in)):
        for right in (w, w.T.contiguous().T, drawn(n_out, n_in + 4)[:, :n_in]):
            np.testing.assert_allclose(products.linear(left, right).numpy(), exact(left, right), rtol=1e-4, atol=1e-4)
    found = products.linear(x, w, bias)
    np.testing.assert_allclose(found.numpy(), exact(x, w) + bias.numpy(), rtol=1e-4, atol=1e-4)
    assert len(by_onednn) == 13 and torch.equal(found, products.linear(x, w, bias))


def test_sums_of_products(by_onednn: list[tuple[int, ...]]) -> None:
    left, right, total = drawn(40, 9), drawn(40, 12), drawn(9, 12)
    expected = total.double().numpy() + exact(left.T, right.T)
    products.add_product(total, left, right)
    np.testing.assert_allclose(total.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert by_onednn == [(9, 40, 12)]


def test_a_model_within(by_onednn: list[tuple[int, ...]]) -> None:
    model, x = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)), drawn(3, 8)
    with torch.inference_mode():
        plain = model(x)
        assert not by_onednn
        with products.fast(x.device):
            found = model(x)
    torch.testing.assert_close(found, plain)
    assert by_onednn == [(3, 8, 16), (3, 16, 4)]


@pytest.mark.parametrize(("tokens", "scale"), [(300, None), (128, 0.2), (5, None)])
def test_attention(tokens: int, scale: float | None, by_onednn: list[tuple[int, ...]]) -> None:
    """Causal, of heads that share keys; values of another size."""
    q, k, v = drawn(2, 6, tokens, 8), drawn(2, tokens, 2, 8).transpose(1, 2), drawn(2, 2, tokens, 5)
    with products.fast(q.device):
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    keys, values = (t.double().repeat_interleave(3, 1) for t in (k, v))
    scores = (q.double() @ keys.mT) * (8**-0.5 if scale is None else scale)
    scores += torch.full((tokens, tokens), -torch.inf).triu(1)
    torch.testing.assert_close(found.double(), scores.softmax(-1) @ values, rtol=1e-4, atol=1e-5)
    assert by_onednn and found.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(
    "given", [{"is_causal": False}, {"is_causal": False, "attn_mask": torch.ones(9, 9).tril().bool()}]
)
def test_attention_that_is_torchs(given: dict[str, Tensor | bool], by_onednn: list[tuple[int, ...]]) -> None:
    q, k, v = drawn(1, 2, 9, 4), drawn(1, 2, 9, 5)[..., :4], drawn(1, 2, 9, 4)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, **given)
    with products.fast(q.device):
        assert torch.equal(torch.nn.functional.scaled_dot_product_attention(q, k, v, **given), expected)
    assert not by_onednn


def test_attention_of_few_tokens_is_torchs(by_onednn: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sequences there are."""
    q = drawn(50, 2, 9, 4)
    monkeypatch.setattr(products, "LEAST_SCORES", 9 * 9 * 4 + 1)
    products.attention(q, q, q, is_causal=True)
    products.attention(q, q[:, :1], q[:, :1].clone().requires_grad_(), is_causal=True, enable_gqa=True).sum().backward()
    assert not by_onednn
    products.attention(q, q[:, :1], q[:, :1], is_causal=True, enable_gqa=True)
    assert by_onednn


def test_left_to_torch(by_onednn: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients, other types, and products too small to gain."""
    x, w = drawn(6, 5), drawn(3, 5).requires_grad_()
    with products.fast(x.device):
        torch.nn.functional.linear(x, w).sum().backward()
    assert w.grad is not None
    torch.testing.assert_close(w.grad, x.sum(0).expand(3, 5))
    assert torch.equal(products.linear(x.double(), w.detach().double()), x.double() @ w.detach().double().T)
    monkeypatch.setattr(products, "LEAST", 6 * 5 * 3 + 1)
    products.linear(x, w.detach())
    assert not by_onednn
