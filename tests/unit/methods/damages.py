"""Weights and inputs of nothing, constants, and numbers at the ends of their type."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant.calibration.jacobian import collect_jacobian
from quant.calibration.material import Material
from quant.calibration.reader import LinearStatistics
from quant.calibration.second_moments import layer_error
from quant.calibration.statistics import collect
from quant.data.tokens import Tokens, fingerprint
from quant.recipe.linear import round_linear
from quant.recipe.quantized import QuantizedLinear
from quant.recipe.recipe import Recipe
from quant.recipe.search import Search
from quant.runtime.compute import Compute
from tests.unit.recipe.cases import recast

BLOCK = "model.layers.1"
UP, DOWN, VALUE, OUT = (f"{BLOCK}.{name}_proj.weight" for name in ("mlp.up", "mlp.down", "self_attn.v", "self_attn.o"))
NORM, AFTER = f"{BLOCK}.input_layernorm.weight", f"{BLOCK}.post_attention_layernorm.weight"


def zero_rows(t: dict[str, Tensor]) -> None:
    t[UP][3] = t[VALUE][5] = 0


def zero_linear(t: dict[str, Tensor]) -> None:
    t[UP].zero_()


def zero_block(t: dict[str, Tensor]) -> None:
    for name, value in t.items():
        if name.startswith(BLOCK) and "proj" in name:
            value.zero_()


def zero_columns(t: dict[str, Tensor]) -> None:
    t[DOWN][:, 4] = t[OUT][:, 7] = 0


def constants(t: dict[str, Tensor]) -> None:
    t[UP].fill_(0.03)
    t[VALUE][2] = -0.5


def small_steps(t: dict[str, Tensor]) -> None:
    t[UP][3] *= 1e-6
    t[VALUE][1] *= 1e-7
    t[DOWN][0] *= 1e-6


def dead_channels(t: dict[str, Tensor]) -> None:
    """Inputs that are never active: 0 in every token."""
    t[NORM][:4] = 0
    t[AFTER][::2] = 0


def quiet_channels(t: dict[str, Tensor]) -> None:
    """Inputs of 1e-4 beside ones of 1e3."""
    t[NORM][:4] = 1e-4
    t[AFTER][:2] = 1e-4
    t[AFTER][5] = 1e3


def large(t: dict[str, Tensor]) -> None:
    """At the end of float16, 65504."""
    t[OUT][0, :3] = torch.tensor([65504.0, -65504.0, 60000.0])
    t[UP][0, 0] = 65504


DAMAGES = [
    zero_rows, zero_linear, zero_block, zero_columns, constants, small_steps, dead_channels, quiet_channels, large,
]  # fmt: skip


class Watched:
    """round_linear, whose every result is held, under the moment that it was made by and towards its target, against
    nearest rounding on the same scale, and against itself without refinement."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(
        self, w: Tensor, found: Search | None, known: LinearStatistics, recipe: Recipe, *more: Any
    ) -> QuantizedLinear:
        result = round_linear(w, found, known, recipe, *more)
        if known.moment is not None:
            self.seen += 1
            less = replace(recipe, refine=0)
            others = {"nearest": replace(less, rounding="nearest", clip=False), "without refinement": less}
            error, signal = (layer_error(d, known.moment) for d in (w - result.dequantize(), w))
            assert math.isfinite(error)
            for name, other in others.items():
                start = layer_error(w - round_linear(w, found, known, other, *more).dequantize(), known.moment)
                assert error <= 1.05 * start + 1e-7 * signal, (name, error, start, signal)
        return result


def damaged(
    checkpoint: Path, target: Path, damage: Callable[[dict[str, Tensor]], None], dtype: torch.dtype | None = None
) -> Path:
    """A copy with weights that a damage has changed, in the type that it is for where none is given."""
    kind = dtype or (torch.bfloat16 if damage in (small_steps, constants) else torch.float16)

    def change(tensors: dict[str, Tensor]) -> None:
        for name, value in tensors.items():
            tensors[name] = value.to(kind)
        damage(tensors)

    return recast(checkpoint, target, change)


def statistics_of(checkpoint: Path, folder: Path) -> dict[str, str]:
    """Of 12 random sequences, and the weighted moments."""
    generator = torch.Generator().manual_seed(3)
    sequences = [torch.randint(0, 256, (24,), generator=generator) for _ in range(12)]
    tokens = Tokens(sequences, fingerprint(sequences), {})
    paths = {name: str(folder / f"{name}.safetensors") for name in ("channels", "moments", "weighted")}
    made = {"model_fingerprint": "tiny"}
    material, compute = Material(checkpoint, tokens, made), Compute("cpu", torch.float32, 96)
    collect(material, paths["channels"], paths["moments"], compute)
    collect_jacobian(material, paths["weighted"], False, compute)
    return paths
