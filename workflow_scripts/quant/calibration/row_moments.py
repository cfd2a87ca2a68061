"""What an error of a linear's outputs costs the model, two outputs at a time: R = E[g gᵀ] [out, out], g = ∂ℓ/∂z of the
loss that calibration/end_loss.py draws labels for. A change D of the weight then costs ½·tr(R D H Dᵀ) nats a token, as
far as g and the inputs are independent: H_O of YAQA (Tseng et al. 2025, arXiv 2505.22988, sketch A).
"""

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from quant.calibration.embedding_moments import EmbeddingSums
from quant.calibration.end_loss import Backward, Kept, write
from quant.calibration.material import Material
from quant.calibration.second_moments import add_outer, mirror, to_triangle
from quant.runtime.compute import Compute


class RowSums:
    """Σ g gᵀ of one linear."""

    def __init__(self, n_out: int, device: torch.device) -> None:
        self._outer = torch.zeros(n_out, n_out, device=device)

    def add(self, x: Tensor, gradient: Tensor) -> None:
        """gradient [n, out] of the same tokens as x."""
        add_outer(self._outer, gradient)

    def results(self, n_tokens: int) -> dict[str, Tensor]:
        """rows: R by a triangle [⌈out/2⌉, out + 1]."""
        return {"rows": to_triangle(mirror(self._outer).div_(n_tokens))}


class RowMoments(Backward):
    """Of the blocks' linears alone."""

    def _summed(self, n_in: int, n_out: int, parts: int, device: torch.device) -> RowSums:
        return RowSums(n_out, device)

    def _watch_head(self) -> RemovableHandle | None:
        return None

    def _embedding(self, kept: Kept, gradients: list[Tensor]) -> EmbeddingSums | None:
        return None


def collect_row_moments(material: Material, out: str, seed: int, compute: Compute) -> None:
    """Writes {linear}.rows of every linear; seed: of the labels."""
    write(RowMoments, material, out, 1, seed, compute)
