"""The number formats of codes: what each says of a grid by itself (quant/recipe/numbers.py has their values)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INT = "int"  # whole numbers


@dataclass(frozen=True)
class Format:
    """bits, sizes: of a code and a group, None where the recipe says; step_bits: of a stored step; rows: that share
    one where a row has several groups; signed: a step may be below 0, so that either end of a range has the codes'
    longer side; whole: inputs that are stored together; in_file: bits of a code in a packed checkpoint, where those
    are more."""

    bits: int | None = None
    sizes: tuple[int, ...] | None = None
    step_bits: int = 16
    rows: int = 1
    signed: bool = False
    whole: int = 1
    in_file: int | None = None


FORMATS: dict[str, Format] = {
    INT: Format(),
    "nvfp4": Format(4, (16,), step_bits=8),
    "mxfp4": Format(4, (32,), step_bits=8),
    "fp8": Format(8, (-1, 128), rows=128),
    "int8": Format(8, (-1,)),
    "nf4": Format(4),
    "iq4_nl": Format(4, (32,), signed=True, in_file=8),
    "q3_k": Format(3, (16,), step_bits=7, signed=True, whole=256),  # 6 bits, and 16 for 16 steps
}
NAMES = {  # of those whose codes are stored as bytes, in a config.json
    "nvfp4": "nvfp4-pack-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "fp8": "float-quantized",
    "int8": "int-quantized",
    "iq4_nl": "int-quantized",
}
IN_GGUF = {  # inputs that share a step in a GGUF file, by format, bits and whether symmetric
    (INT, 4, True): 32,
    (INT, 4, False): 32,
    (INT, 8, True): 32,
    ("iq4_nl", 4, True): 32,
    ("q3_k", 3, True): 16,
}
EMBEDDED = (INT, "iq4_nl")  # that a token embedding may be in
MOVABLE = (INT, "iq4_nl", "q3_k")  # whose codes and steps are tuned in a block
IN_WORDS = (INT, "q3_k")  # of whole numbers, several codes a word
SIMULATED = FORMATS.keys() - NAMES.keys() - set(IN_WORDS)  # no reader of packed checkpoints takes them
BY_TOKEN = ("int8", "fp8")  # those that inputs may be rounded to as they run


def fixed(name: str) -> dict[str, tuple[Any, ...]]:
    """The keys of a recipe that a format says itself, and what each may be, the usual first."""
    own = FORMATS[name]
    if own.bits is None:
        return {}
    return {"bits": (own.bits,), "symmetric": (True,)} | ({} if own.sizes is None else {"group_size": own.sizes})


def bits_per_weight(recipe: Mapping[str, Any]) -> float:
    """Of a recipe's grid with its steps and zero points, where groups divide a row; per channel, of the codes alone."""
    own, size = FORMATS[recipe.get("format", INT)], recipe["group_size"]
    per_group = own.step_bits + (0 if recipe["symmetric"] else recipe["bits"])
    rows = 1 if own.sizes and size not in own.sizes else own.rows
    return float(recipe["bits"] + (per_group / (size * rows) if size > 0 else 0))
