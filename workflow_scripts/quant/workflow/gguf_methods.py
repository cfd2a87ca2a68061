"""The methods that make's FILE=gguf brings, or why a model or a limit has none."""

import copy
import math
from collections.abc import Mapping
from typing import Any

from quant.errors import InputError
from quant.models.structure.architectures import IN_GGUF, architecture_of
from quant.recipe.formats import FORMATS, bits_per_weight
from quant.workflow.estimates.shape import Shape, holds_experts
from quant.workflow.model_source import model_type_of

OF_GGUF = {"salience": "l2", "scope": "shared", "clip": True, "rounding": "gptq", "refine": 3, "format": "iq4_nl"}
IN_4_BITS = {"format": "iq4_nl", "needed": False}
IN_8_BITS = {"bits": 8, "group_size": 32, "needed": False}
GGUFS: dict[str, dict[str, Any]] = {  # smallest first
    "gguf_4bit": OF_GGUF | {"embeddings": IN_4_BITS},
    "gguf_4bit_ends_8bit": OF_GGUF | {"embeddings": IN_8_BITS},
    "gguf_8bit": {"bits": 8, "group_size": 32, "symmetric": True, "embeddings": IN_8_BITS},
}
FEWER = "gguf_3bit"  # beside them, of a limit below IQ4_NL's bits
OF_EXPERTS = {  # which they are packed in, of 4.5 bits too
    "format": "int",
    "bits": 4,
    "group_size": 32,
    "symmetric": True,
}
CODES = ("tensor_types", *OF_EXPERTS)  # what a method has by the model that it is for


def bits_of(name: str) -> float:
    """Bits a weight of a format that says all of its grid."""
    known = FORMATS[name]
    assert known.bits is not None and known.sizes is not None
    return bits_per_weight({"format": name, "bits": known.bits, "group_size": known.sizes[0], "symmetric": True})


def fewest_bits(config: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Bits a weight of the smallest GGUF file, a head of its own in IQ4_NL among them, and its method's codes: Q3_K for
    linears whose inputs its blocks divide, of experts all or none, IQ4_NL for the rest; where nothing is known of the
    model (config: {}), Q3_K."""
    shape, whole = Shape.of(config), FORMATS["q3_k"].whole
    if shape is None:
        return bits_of("q3_k"), {"format": "q3_k"}
    fits = [each.n_in % whole == 0 for each in shape.linears]
    inputs = {  # of llama's names, or those fused
        "(q|k|v|qkv|gate|up|gate_up)_proj": fits[0],
        "o_proj": fits[2],
        "down_proj": fits[-1],
    }
    types = [{"linears": name, "format": "q3_k"} for name, fit in inputs.items() if fit]
    if all(fits):
        codes: dict[str, Any] = {"format": "q3_k"}
    elif holds_experts(config):
        codes, fits = dict(OF_EXPERTS), [False] * len(fits)
    else:
        codes = {"format": "iq4_nl"} | ({"tensor_types": types} if types else {})
    sizes = [shape.depth * each.n * each.n_out * each.n_in for each in shape.linears]
    small = sum(size for size, fit in zip(sizes, fits, strict=True) if fit)
    every = sum(sizes) + (0 if shape.tied else shape.embedding)
    return (small * bits_of("q3_k") + (every - small) * bits_of("iq4_nl")) / every, codes


def enough(bits: float) -> str:
    """What BITS says to allow so many: 3 and 4 are codes with their scales, others as they are, in tenths."""
    tenths = math.ceil(10 * bits) / 10
    return "3" if tenths <= 3.5 else "4" if tenths >= 4.5 else f"{tenths:g}"


def ggufs(config: Mapping[str, Any], limit: float | None, said: str) -> dict[str, dict[str, Any]]:
    """The methods. config: {} where nothing is known of the model; limit: of bits a weight, as BITS said it."""
    if (kind := model_type_of(config)) is not None:
        architecture_of({"model_type": kind}, "FILE=gguf", IN_GGUF, "leave FILE=gguf out")
    found = copy.deepcopy(GGUFS)
    if holds_experts(config):
        found = {name: each | OF_EXPERTS if "format" in each else each for name, each in found.items()}
    if limit is None or limit >= bits_of("iq4_nl"):
        return found
    least, codes = fewest_bits(config)
    if limit < least:
        whole = FORMATS["q3_k"].whole
        raise InputError(
            f"BITS={said} with FILE=gguf: fewer than the {least:.4g} bits a weight of the smallest file, in Q3_K and, "
            f"of a head of its own and what {whole} does not divide, in IQ4_NL; give BITS={enough(least)}, or SIZE_MB "
            "in its place"
        )
    return {FEWER: copy.deepcopy(OF_GGUF | codes | {"embeddings": IN_4_BITS})} | found
