"""Second moments H = XᵀX/N [in, in]: summed, and what they say of a changed weight.

E‖Dx‖² = tr(D H Dᵀ) for any D [out, in]. H is symmetric, so products and sums touch only the blocks on and above its
diagonal.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def column_blocks(n: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the column blocks of a symmetric [n, n]: eight, none under 192 wide.

    A product with a symmetric matrix needs no block below the diagonal, which saves up to 44 % of it.
    """
    width = max(192, -(-n // 8))
    for start in range(0, n, width):
        yield start, min(start + width, n)


def add_outer(total: Tensor, x: Tensor) -> None:
    """total += xᵀx for x [n, in], in blocks on and above the diagonal of total [in, in]."""
    for start, stop in column_blocks(len(total)):
        total[:stop, start:stop].addmm_(x[:, :stop].T, x[:, start:stop])


def mirror(total: Tensor) -> Tensor:
    """Fills the blocks below the diagonal from those above."""
    for start, stop in column_blocks(len(total)):
        total[stop:, start:stop] = total[start:stop, stop:].T
    return total


def half(moment: Tensor) -> Tensor:
    """U with U + Uᵀ = H: H's blocks above the diagonal, and half of those on it. [in, in]"""
    upper = moment.clone()
    for start, stop in column_blocks(len(moment)):
        upper[start:stop, start:stop] *= 0.5
        upper[stop:, start:stop] = 0
    return upper


def row_errors(difference: Tensor, upper: Tensor) -> Tensor:
    """Each output's error d_k H d_kᵀ [out], from D = W-Ŵ [out, in] and half(H)."""
    total = difference.new_zeros(difference.shape[0])
    for start, stop in column_blocks(len(upper)):
        product = difference[:, :stop] @ upper[:stop, start:stop]
        total += torch.linalg.vecdot(product, difference[:, start:stop])
    return total.mul_(2)


def layer_error(difference: Tensor, moment: Tensor) -> float:
    """tr(D H Dᵀ) = E‖Dx‖², summed in float64."""
    return row_errors(difference, half(moment)).sum(dtype=torch.float64).item()
