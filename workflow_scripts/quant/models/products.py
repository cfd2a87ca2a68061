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


class _Linears(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (linear if func is torch.nn.functional.linear else func)(*args, **(kwargs or {}))


@contextlib.contextmanager
def fast_linears(device: torch.device) -> Iterator[None]:
    """Within it torch.nn.functional.linear, and so every nn.Linear, is `linear`."""
    if device.type == "cpu" and gains():
        with _Linears():
            yield
    else:
        yield
