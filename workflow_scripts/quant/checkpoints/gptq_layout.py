"""AutoGPTQ's file layout, which AutoRound writes too: for a linear of [out, in] in groups of g inputs, qweight int32
[in·bits/32, out] and qzeros int32 [in/g, out·bits/32] hold codes one after another from the lowest bit on, over the
words' ends where 32 is no multiple of bits; scales float16 [in/g, out] are the steps; w = (code - zero)·scale."""

import torch
from torch import Tensor

from quant.files.tensorfile import TensorFile
from quant.recipe.grids import Codes, Grid

WORD = 32  # bits; so many codes fill `bits` whole words


def unpack_stream(words: Tensor, bits: int) -> Tensor:
    """int32 [rows, n·bits/32] → codes 0 to 2^bits-1, int32 [rows, n]; n a multiple of 32."""
    unsigned = words.long() & (2**WORD - 1)
    turns = unsigned.view(len(words), -1, bits)
    codes = torch.empty(len(words), turns.shape[1], WORD, dtype=torch.int32, device=words.device)
    for i in range(WORD):
        word, shift = divmod(i * bits, WORD)
        code = turns[:, :, word] >> shift
        if shift + bits > WORD:
            code = code | turns[:, :, word + 1] << (WORD - shift)
        codes[:, :, i] = code & (2**bits - 1)
    return codes.flatten(1)


def unpack(qweight: Tensor, qzeros: Tensor, scales: Tensor, grid: Grid, zeros_less: int) -> Codes:
    """float32; zeros_less: what was taken from a zero before it was written. Of a symmetric grid the zeros are its
    middle, and the codes are about 0."""
    groups, n_out = scales.shape
    codes = unpack_stream(qweight.T.contiguous(), grid.bits)
    zero = unpack_stream(qzeros, grid.bits).T[:, :, None].float() + zeros_less
    n_in = codes.shape[1]
    codes, step = codes.view(n_out, groups, n_in // groups).float(), scales.T[:, :, None].float()
    if grid.symmetric:
        codes, zero = codes - zero, torch.zeros_like(zero)
    return Codes(codes, step, zero, grid, n_in)


def read(file: TensorFile, name: str, grid: Grid, zeros_less: int) -> Codes:
    """A linear of a file."""
    qweight, qzeros, scales = (file.get(f"{name}.{part}") for part in ("qweight", "qzeros", "scales"))
    return unpack(qweight, qzeros, scales, grid, zeros_less)
