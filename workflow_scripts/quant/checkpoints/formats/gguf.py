"""GGUF, llama.cpp's format, in the blocks that hold codes as they are."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quant.checkpoints import gguf_file, stored
from quant.checkpoints.fitting import deviation, fitting_size, half_steps, in_float16, needs, regrouped
from quant.errors import InputError
from quant.recipe.grids import Codes


def blocks_q4_0(name: str, linear: Codes) -> np.ndarray:
    """[out, blocks·18] bytes: float16 step, then 16 bytes of two codes each, the first half of a block in low bits."""
    codes = (linear.codes + 8).to(torch.uint8)
    return block_bytes([half_steps(name, linear.step, "GGUF's Q4_0")], codes[:, :, :16] | (codes[:, :, 16:] << 4))


def blocks_q4_1(name: str, linear: Codes) -> np.ndarray:
    """[out, blocks·20]: float16 step and least value, then the codes; the least value -zero·step is rounded to that."""
    codes = linear.codes.to(torch.uint8)
    step, least = half_steps(name, linear.step, "GGUF's Q4_1"), (-linear.zero * linear.step).half()
    if not torch.isfinite(least).all():
        raise InputError(f"{name}: a range begins beyond float16, which GGUF's Q4_1 stores; export a symmetric method")
    return block_bytes([step, least], codes[:, :, :16] | (codes[:, :, 16:] << 4))


def blocks_q8_0(name: str, linear: Codes) -> np.ndarray:
    """[out, blocks·34]: float16 step, then signed bytes."""
    return block_bytes([half_steps(name, linear.step, "GGUF's Q8_0")], linear.codes.to(torch.int8).view(torch.uint8))


def block_bytes(numbers: list[Tensor], codes: Tensor) -> np.ndarray:
    """float16 numbers [out, blocks, 1] and bytes [out, blocks, n] as rows of bytes."""
    heads = [number.contiguous().view(torch.uint8) for number in numbers]
    return torch.cat([*heads, codes], dim=2).flatten(1).numpy()


# by (bits, symmetric)
BLOCKS: dict[tuple[int, bool], tuple[str, Callable[[str, Codes], np.ndarray]]] = {
    (4, True): ("Q4_0", blocks_q4_0),
    (4, False): ("Q4_1", blocks_q4_1),
    (8, True): ("Q8_0", blocks_q8_0),
}
BLOCK_SIZE = 32


def gguf(held: stored.Stored, config: dict[str, Any], target: Path, checkpoint: Path) -> dict[str, Any]:
    """model.gguf: each linear and a quantised embedding as Q4_0 (symmetric), Q4_1 (with zero points) or Q8_0, the rest
    as it is, norms in float32."""
    needs(held, (4, 8), "GGUF")
    every = held.packed | held.embedding
    for name, grid in sorted(every.items()):
        if (grid.bits, grid.symmetric) not in BLOCKS:
            raise InputError(
                f"{held.file.path}: {name}: GGUF has no blocks of {grid.bits} bits with zero points; export a "
                "symmetric method"
            )
    size = fitting_size(held, (BLOCK_SIZE,), "GGUF")
    kinds = Counter(BLOCKS[grid.bits, grid.symmetric][0] for grid in held.packed.values())
    kind = kinds.most_common(1)[0][0]  # what the file is called after
    names = gguf_file.Names(config)

    def tensors() -> Iterator[tuple[str, np.ndarray, str]]:
        for name in sorted(every):
            linear = in_float16(regrouped(held.linear(name), size))
            order = names.rows(name, len(linear.codes))
            linear = linear._replace(codes=linear.codes[order], step=linear.step[order], zero=linear.zero[order])
            own, blocks = BLOCKS[linear.grid.bits, linear.grid.symmetric]
            yield names.of(f"{name}.weight"), blocks(name, linear), own
        for key in sorted(held.file.names):
            name = key.rpartition(".")[0]
            if (name not in every or key.endswith(".bias")) and not key.endswith(".weight_scale"):
                value = held.file.get(key)
                yield names.of(key), *gguf_file.plain(value[names.rows(name, len(value))])

    gguf_file.write(target / "model.gguf", config, checkpoint, tensors(), kind)
    worst = 0.0
    read = gguf_file.Weights(target / "model.gguf")
    for name in every:
        w = read.get(names.of(f"{name}.weight"))
        w = w[names.rows(name, len(w)).argsort()]
        worst = max(worst, deviation(w, held.linear(name)))
    return {"type": "+".join(sorted(kinds)), "largest_deviation": worst}
