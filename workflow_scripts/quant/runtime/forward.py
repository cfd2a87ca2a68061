"""A model's forward pass at the speed of its device: on a CPU by `products`, on a GPU with its norms and rotations in
one kernel each, where these do what its own do.

No architecture is named here: a norm is tried on numbers drawn for it, a rotation on the first that it is given, and
what gives something else stays as it is.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from quant.runtime import products
from quant.runtime.compute import where_installed
from quant.runtime.instead import doing

ROTATION = "apply_rotary_pos_emb"  # what transformers calls it in every architecture that has it
TRIED = 16  # rows that a norm is tried on

Rotation = Callable[..., tuple[Tensor, Tensor]]


@where_installed
def forward_kernels() -> ModuleType:
    """Fused kernels for GPUs, by Triton."""
    from quant.runtime import forward_kernels

    return forward_kernels


def _epsilon(norm: nn.Module) -> float | None:
    found = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return found if isinstance(found, float) else None


def _is_fused(norm: nn.Module, fused: ModuleType) -> bool:
    """Whether the kernel gives what this module gives, but for the last bit of it."""
    weight, epsilon = getattr(norm, "weight", None), _epsilon(norm)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or epsilon is None or len(list(norm.parameters())) != 1:
        return False
    if not weight.is_cuda or not len(weight) <= fused.LONGEST:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TRIED, len(weight), generator=generator).to(weight.device, weight.dtype)
    try:
        own = norm(x)
    except (RuntimeError, TypeError, ValueError):  # it reads something else
        return False
    if not isinstance(own, Tensor) or own.shape != x.shape or own.dtype != x.dtype:
        return False
    slack = 2 * torch.finfo(own.dtype).eps
    return torch.allclose(fused.rms_norm(x, weight, epsilon), own, rtol=slack, atol=slack * own.abs().max().item())


def _normed(fused: ModuleType, norm: nn.Module, own: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    weight, epsilon = norm.get_parameter("weight"), _epsilon(norm)
    return fused.rms_norm(x, weight, epsilon) if x.is_cuda and x.dtype == weight.dtype else own(x)


def _rotated(own: Rotation, fused: ModuleType) -> Rotation:
    """Whose first call says whether the kernels give the same to the bit."""
    agrees: list[bool] = []

    def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if args or kwargs or agrees == [False] or not all(fused.rotates(each, cos, sin) for each in (q, k)):
            return own(q, k, cos, sin, *args, **kwargs)
        found = fused.rotate(q, cos, sin), fused.rotate(k, cos, sin)
        if not agrees:
            expected = own(q, k, cos, sin)
            agrees.append(all(torch.equal(*pair) for pair in zip(found, expected, strict=True)))
            return expected
        return found

    return rotated


class Forward:
    """Within it, a model runs so."""

    def __init__(self, model: nn.Module) -> None:
        self._norms: dict[nn.Module, Any] = {}
        self._rotations: dict[ModuleType, Rotation] = {}
        self._device = next((each.device for each in model.parameters()), torch.device("cpu"))
        if self._device.type != "cuda" or (fused := forward_kernels()) is None:
            return
        with torch.inference_mode():
            for module in model.modules():
                home = sys.modules[type(module).__module__]
                if home not in self._rotations and callable(own := getattr(home, ROTATION, None)):
                    self._rotations[home] = _rotated(own, fused)
                named = type(module).__name__.endswith("RMSNorm") and "forward" not in vars(module)
                if named and _is_fused(module, fused):
                    self._norms[module] = partial(_normed, fused, module, module.forward)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        before = {home: getattr(home, ROTATION) for home in self._rotations}
        try:
            for home, rotation in self._rotations.items():
                setattr(home, ROTATION, rotation)
            with doing(self._norms), products.fast(self._device):
                yield
        finally:
            for home, own in before.items():
                setattr(home, ROTATION, own)
