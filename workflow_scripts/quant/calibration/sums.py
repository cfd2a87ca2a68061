"""Running sums over calibration tokens: of what linears read, their second moment among them, and of what they put out.

H is summed in float32, everything else in float64.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from quant.calibration.channels import OF_INPUT, OF_OUTPUT
from quant.calibration.second_moments import add_outer, dots, mirror, to_triangle
from quant.runtime.compute import where_installed


@where_installed
def sum_kernels() -> ModuleType:
    """Fused kernels for GPUs, by Triton; apart from those of grids, which no statistics rest on."""
    from quant.calibration import sum_kernels

    return sum_kernels


def column_sums(x: Tensor, center: Tensor | None = None) -> Tensor:
    """Σ|x|, Σ(x - center)² and Σ(x - center) over the rows of x [n, in], in float64 [3, in]."""
    if x.is_cuda and (fused := sum_kernels()) is not None:
        return fused.column_sums(x, center, False)
    x = x.float()
    shifted = x if center is None else x - center
    return torch.stack([x.abs().sum(0), dots(shifted, shifted, 0), shifted.sum(0)]).double()


def output_sums(z: Tensor, center: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The same of z [n, out], and Σ|act(z)|, in float64 [4, out]."""
    from transformers.activations import SiLUActivation

    if z.is_cuda and isinstance(activation, SiLUActivation) and (fused := sum_kernels()) is not None:
        return fused.column_sums(z, center, True)
    z = z.float()
    after = activation(z)
    activated = column_sums(after)[0] if after.is_cuda else after.abs_().sum(0).double()
    return torch.cat([column_sums(z, center), activated[None]])


class InputSums:
    """Running sums over the rows of x [n, in]; weight: what each of them counts. folded: what other passes summed, as
    triangles."""

    def __init__(self, n_in: int, device: torch.device, with_moment: bool = True) -> None:
        self.count = 0.0
        self.sums = torch.zeros(3, n_in, dtype=torch.float64, device=device)
        self.outer = torch.zeros(n_in, n_in, device=device) if with_moment else None
        self.folded: Tensor | None = None

    def add(self, x: Tensor, weight: float = 1.0) -> None:
        self.count += weight * len(x)
        self.sums += weight * column_sums(x)
        if self.outer is None and self.folded is not None:
            self.outer = torch.zeros(x.shape[-1], x.shape[-1], device=x.device)
        if self.outer is not None:
            add_outer(self.outer, x if weight == 1 else x.float() * weight**0.5)

    def merge(self, count: float, sums: Tensor | None = None, folded: Tensor | None = None) -> None:
        """What another pass, over other tokens, summed of the same input; folded: `to_triangle` of its outer."""
        self.count += count
        if sums is not None:
            self.sums += sums
        if folded is not None:
            self.folded = folded if self.folded is None else self.folded.add_(folded)

    @property
    def has_moment(self) -> bool:
        return self.outer is not None or self.folded is not None

    def lend(self) -> None:
        """It has no moment of its own."""
        self.outer = self.folded = None

    def means(self) -> dict[str, Tensor]:
        return dict(zip(OF_INPUT, (self.sums / self.count).float().cpu(), strict=True))

    def moment(self) -> Tensor:
        """H = XᵀX/N [in, in], float32; of one pass."""
        assert self.outer is not None
        return mirror(self.outer).div_(self.count)

    def triangle(self) -> Tensor:
        """`to_triangle` of H."""
        if self.folded is None:
            return to_triangle(self.moment())
        return self.folded.add_(0 if self.outer is None else to_triangle(self.outer)).div_(self.count)


class OutputSums:
    """Running sums over the rows of z [n, out]; about the first batch's mean, so that std loses no digits."""

    def __init__(self, n_out: int, device: torch.device, activation: Callable[[Tensor], Tensor]) -> None:
        self.count, self.activation = 0.0, activation
        self.center: Tensor | None = None
        self.sums = torch.zeros(4, n_out, dtype=torch.float64, device=device)

    def add(self, z: Tensor, weight: float = 1.0) -> None:
        self.count += weight * len(z)
        if self.center is None:
            self.center = z.mean(0, dtype=torch.float32)
        self.sums += weight * output_sums(z, self.center, self.activation)

    def merge(self, count: float, center: Tensor, sums: Tensor) -> None:
        """What another pass, over other tokens, summed of the same output, about a center of its own."""
        if self.center is None:
            self.center = center
        z_abs, square, shift, act_abs = sums
        moved = center.double() - self.center.double()
        square = square + 2 * moved * shift + count * moved**2
        self.sums += torch.stack([z_abs, square, shift + count * moved, act_abs])
        self.count += count

    def means(self) -> dict[str, Tensor]:
        z_abs, square, shift, act_abs = self.sums / self.count
        assert self.center is not None
        std = (square - shift**2).clamp_(min=0).sqrt()
        found = torch.stack([self.center + shift, std, z_abs, act_abs]).float().cpu()
        return dict(zip(OF_OUTPUT, found, strict=True))
