"""AutoAWQ's file layout, GEMM: for a linear of [out, in] in groups of g inputs, qweight int32 [in, out/8] and qzeros
int32 [in/g, out/8] hold eight codes each, scales float16 [in/g, out] the steps; w = (code - zero)·scale."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from quant.errors import InputError
from quant.files.tensorfile import TensorFile
from quant.recipe.grids import Codes, Grid

COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # of each eight, from the lowest four bits of an int32 to the highest


def unpack_int4(packed: Tensor) -> Tensor:
    """int32 [rows, n/8] → codes 0 to 15, uint8 [rows, n]."""
    shifts = 4 * torch.tensor(COLUMNS, dtype=torch.int32).argsort().to(packed.device, torch.int32)
    return ((packed[:, :, None] >> shifts) & 15).to(torch.uint8).flatten(1)


def pack_int4(codes: Tensor) -> Tensor:
    """Codes 0 to 15 [rows, n], n a multiple of 8 → int32 [rows, n/8]."""
    shifts = 4 * torch.tensor(COLUMNS).argsort().to(codes.device)
    words = (codes.long().view(len(codes), -1, 8) << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


class Packed(NamedTuple):
    """One linear as AutoAWQ stores it, layout GEMM."""

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor

    def unpack(self) -> Codes:
        """Codes [out, n_groups, g], step and zero [out, n_groups, 1], float32."""
        groups, n_out = self.scales.shape
        n_in = len(self.qweight)
        codes = unpack_int4(self.qweight).T.reshape(n_out, groups, n_in // groups).float()
        zero = unpack_int4(self.qzeros).T.float()[:, :, None]
        return Codes(codes, self.scales.T.float()[:, :, None], zero, Grid(4, n_in // groups, False), n_in)


def read(file: TensorFile, name: str) -> Packed:
    """A linear's packed tensors."""
    return Packed(*(file.get(f"{name}.{part}") for part in Packed._fields))


def read_packed(file: TensorFile, linears: Iterable[str]) -> dict[str, Packed]:
    """Every linear's packed tensors; refuses a checkpoint in which others are packed."""
    found = {name.removesuffix(".qweight") for name in file.names if name.endswith(".qweight")}
    wanted = set(linears)
    if found != wanted:
        raise InputError(f"{file.path}: differs from the checkpoint about {min(found ^ wanted)}; export it again")
    return {name: read(file, name) for name in linears}
