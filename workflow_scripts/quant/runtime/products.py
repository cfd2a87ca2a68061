"""Products in float32 on a CPU by oneDNN, where MKL does not use what the processor has.

On an AMD EPYC with AVX-512, one thread: 250 GFLOP/s where MKL gives 110. oneDNN is in every PyTorch; its product is an
operator of PyTorch's own compiler, without gradients.
"""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

LEAST = 2**22  # multiply-adds of a product; what is smaller is not worth the call
LEAST_SCORES = 2**25  # the same of the scores of heads that read one key
THREADS = 2  # up to which attention gains: torch's own has a thread a head
QUERIES = 128  # tokens whose scores of all keys before them are made at once


@functools.cache
def gains() -> bool:
    """Whether oneDNN is the faster one: a CPU with AVX-512 that is not Intel's own."""
    cpus = Path("/proc/cpuinfo")
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()
    known = wide and hasattr(torch.ops.mkldnn, "_linear_pointwise") and cpus.is_file()
    return known and "GenuineIntel" not in cpus.read_text(encoding="utf-8")


def takes(x: Tensor, w: Tensor) -> bool:
    """Whether x [..., in]·wᵀ, w [out, in], goes through oneDNN."""
    if x.is_cuda or x.dtype != torch.float32 or w.dtype != torch.float32 or x.numel() * w.shape[0] < LEAST:
        return False
    return gains() and x.device.type == "cpu" and not (torch.is_grad_enabled() and (x.requires_grad or w.requires_grad))


def _onednn(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    # of a slice it is a thousand times slower
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), w.contiguous(), bias, "none", [], "")


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear of x [..., in], w [out, in]."""
    return _onednn(x, w, bias) if takes(x, w) else torch.nn.functional.linear(x, w, bias)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += leftᵀ·right of [n, a] and [n, b], float32."""
    if takes(left.T, right.T):
        total += linear(left.T, right.T)
    else:
        total.addmm_(left.T, right)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention of q [n, heads, tokens, size]; k and v may have fewer heads."""
    plain = attn_mask is None and not dropout_p and is_causal and q.ndim == k.ndim == v.ndim == 4
    plain = plain and q.shape[2] == k.shape[2] and torch.get_num_threads() <= THREADS
    alike = q.shape[1] // k.shape[1] if plain else 0  # heads that read one of k and v
    if not plain or q[0, :alike].numel() * q.shape[2] < LEAST_SCORES or not all(takes(q, t[0, 0]) for t in (k, v)):
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    n, heads, tokens, size = q.shape
    out = q.new_empty(n, tokens, heads, v.shape[-1]).transpose(1, 2)
    for i in range(n):
        for j in range(k.shape[1]):
            own = slice(j * alike, (j + 1) * alike)
            _attend(out[i, own], q[i, own] * (size**-0.5 if scale is None else scale), k[i, j], v[i, j])
    return out


def _attend(out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Fills out [heads, tokens, size of v], q [heads, tokens, size], of one head of k and v [tokens, size]: QUERIES
    tokens at a time, so that half of the scores, of keys that come after, are not made."""
    k, v = k.contiguous(), v.T.contiguous()
    heads, tokens, size = q.shape
    after = torch.ones(QUERIES, QUERIES, dtype=torch.bool).triu_(1)
    for start in range(0, tokens, QUERIES):
        stop = min(start + QUERIES, tokens)
        scores = _onednn(q[:, start:stop].reshape(-1, size), k[:stop], None).view(heads, stop - start, stop)
        scores[:, :, start:].masked_fill_(after[: stop - start, : stop - start], -torch.inf)
        out[:, start:stop] = _onednn(scores.softmax(-1), v[:, :stop], None)


class _Fast(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return OURS.get(func, func)(*args, **(kwargs or {}))


OURS = {torch.nn.functional.linear: linear, torch.nn.functional.scaled_dot_product_attention: attention}


@contextlib.contextmanager
def fast(device: torch.device) -> Iterator[None]:
    """Within it torch.nn.functional.linear, and so every nn.Linear, is `linear`, and scaled_dot_product_attention is
    `attention`."""
    if device.type == "cpu" and gains():
        with _Fast():
            yield
    else:
        yield
