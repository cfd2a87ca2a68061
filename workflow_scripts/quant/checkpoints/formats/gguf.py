"""GGUF, llama.cpp's format, in the blocks that hold codes as they are, each tensor in its own (ggml-quants.h)."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from quant.checkpoints import gguf_file, stored
from quant.checkpoints.fitting import deviation, half_steps, in_float16, regrouped, undivided
from quant.checkpoints.gguf_metadata import hyperparameters, normalised
from quant.checkpoints.sizes import gguf_mb
from quant.errors import InputError
from quant.files.tensorfile import Layout
from quant.models.sources.gguf_hyperparameters import config_read, head_size, model_type_read, turned
from quant.recipe.formats import INT
from quant.recipe.grids import Codes, Grid
from quant.recipe.numbers import IQ4_NL, MANY, times_one


def halves(codes: Tensor) -> Tensor:
    """Bytes [out, blocks, 16] of two codes of 4 bits each, the first half of a block in low bits."""
    return codes[:, :, :16] | (codes[:, :, 16:] << 4)


def blocks_q4_0(name: str, linear: Codes) -> np.ndarray:
    """[out, blocks·18] bytes: float16 step, then codes."""
    return block_bytes([half_steps(name, linear.step, "GGUF's Q4_0")], halves((linear.codes + 8).to(torch.uint8)))


def blocks_q4_1(name: str, linear: Codes) -> np.ndarray:
    """[out, blocks·20]: float16 step and least value, then the codes; the least value -zero·step is rounded to that."""
    step, least = half_steps(name, linear.step, "GGUF's Q4_1"), (-linear.zero * linear.step).half()
    if not torch.isfinite(least).all():
        raise InputError(f"{name}: a range begins beyond float16, which GGUF's Q4_1 stores; export a symmetric method")
    return block_bytes([step, least], halves(linear.codes.to(torch.uint8)))


def blocks_q8_0(name: str, linear: Codes) -> np.ndarray:
    """[out, blocks·34]: float16 step, then signed bytes."""
    return block_bytes([half_steps(name, linear.step, "GGUF's Q8_0")], linear.codes.to(torch.int8).view(torch.uint8))


def blocks_iq4_nl(name: str, linear: Codes) -> np.ndarray:
    """[out, blocks·18]: float16 step, then places of values."""
    places = torch.bucketize(linear.codes.contiguous(), torch.tensor(IQ4_NL)).to(torch.uint8)
    return block_bytes([half_steps(name, linear.step, "GGUF's IQ4_NL")], halves(places))


def blocks_q3_k(name: str, linear: Codes) -> np.ndarray:
    """[out, blocks·110] of 256 codes each: their third bits, 32 bytes; their lower two, 64; 16 steps of 6 bits, 12; and
    the float16 that these are times."""
    n_out, n_groups = linear.step.shape[:2]
    one, times = times_one(linear.step, 6)
    signed = torch.copysign(times, linear.step.view_as(times))
    if not torch.equal((signed * one).view_as(linear.step), linear.step):
        raise InputError(
            f"{name}: its steps are not 6 bits times one number for each {MANY}, as GGUF's Q3_K has them; use format: "
            "q3_k"
        )
    blocks = n_groups // MANY
    places = (linear.codes + 4).to(torch.uint8).view(n_out, blocks, 2, 4, 32)
    low = ((places & 3) << torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]).sum(3).view(n_out, blocks, 64)
    bits = (places >> 2).view(n_out, blocks, 8, 32) << torch.arange(8, dtype=torch.uint8)[:, None]
    scales = (signed + 32).to(torch.uint8)
    of_four = (scales >> 4).view(n_out, blocks, 4, 4) << torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    packed = torch.cat([(scales[:, :, :8] & 15) | ((scales[:, :, 8:] & 15) << 4), of_four.sum(2).to(torch.uint8)], 2)
    parts = [bits.sum(2).to(torch.uint8), low.to(torch.uint8), packed]
    return torch.cat([*parts, half_steps(name, one, "GGUF's Q3_K").view(torch.uint8)], 2).flatten(1).numpy()


def block_bytes(numbers: list[Tensor], codes: Tensor) -> np.ndarray:
    """float16 numbers [out, blocks, 1] and bytes [out, blocks, n] as rows of bytes."""
    heads = [number.contiguous().view(torch.uint8) for number in numbers]
    return torch.cat([*heads, codes], dim=2).flatten(1).numpy()


class Kind(NamedTuple):
    """A type of tensor: inputs that share a step, and those of a block."""

    name: str
    size: int
    whole: int
    blocks: Callable[[str, Codes], np.ndarray]


KINDS: dict[tuple[str, int, bool], Kind] = {  # by number format, bits and whether symmetric
    (INT, 4, True): Kind("Q4_0", 32, 32, blocks_q4_0),
    (INT, 4, False): Kind("Q4_1", 32, 32, blocks_q4_1),
    (INT, 8, True): Kind("Q8_0", 32, 32, blocks_q8_0),
    (INT, 3, True): Kind("Q3_K", MANY, 256, blocks_q3_k),
    ("iq4_nl", 4, True): Kind("IQ4_NL", 32, 32, blocks_iq4_nl),
}
FILE_TYPES = {"Q3_K": "Q3_K_M"}  # what a file is called after tensors whose type has no name of its own there


def kind_of(name: str, grid: Grid, n_in: int) -> Kind:
    """The type of tensor that holds a linear's codes; refused by its name where there is none. grid: as a recipe, or a
    checkpoint, which has words of whole numbers for some formats, says it."""
    kind = KINDS.get((INT if grid.in_words else grid.format, grid.bits, grid.symmetric))
    if kind is None:
        bits = f"{grid.bits} bits{'' if grid.symmetric else ' with zero points'}"
        raise InputError(
            f"{name} is in {bits if grid.format == INT else grid.format}, which GGUF has no blocks for; it "
            "has some for 4 bits, symmetric 8 bits, iq4_nl and q3_k: export another method"
        )
    group = n_in if grid.group_size == -1 else grid.group_size
    for size, of in ((kind.whole, n_in), (kind.size, group)):
        if of % size:
            raise undivided(name, group, n_in, size, "GGUF")
    return kind


NO_BIASES = ("llama", "qwen3")  # architectures of whose files transformers reads none


def check(config: dict[str, Any], checkpoint: Path, dense: Layout, grids: Mapping[str, Grid]) -> None:
    """Refuses what `gguf` would, before a method's checkpoint is there. checkpoint: the unquantised one, its config and
    its layout; grids: of linears and embeddings."""
    names = gguf_file.Names(config)
    for key in sorted(dense):
        names.of(key)
    for name, grid in sorted(grids.items()):
        dtype, (_, n_in) = dense[f"{name}.weight"]
        kind = kind_of(name, grid, n_in)
        if dtype == torch.float32 and kind.size == kind.whole:  # Q3_K's steps are of few bits in every type
            raise InputError(
                f"{name} is stored in float32, whose steps are no float16, which GGUF's {kind.name} stores; give the "
                "model in float16 or bfloat16"
            )
    gguf_file.described(None, config, checkpoint, FILE_TYPES.get(kind.name, kind.name))


def why_unread(config: dict[str, Any], checkpoint: Path, dense: Layout) -> str | None:
    """What plain transformers does not read as it is written of a file that `check` lets pass, and llama.cpp does read:
    it can be exported, and not measured."""
    from gguf import GGUFWriter
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    facts = gguf_file.Names(config).facts
    if model_type_read(facts.name).removesuffix("_text") not in GGUF_SUPPORTED_ARCHITECTURES:
        return f"transformers reads no GGUF file of {facts.name}"
    bias = next((key for key in sorted(dense) if key.endswith(".bias")), None)
    if bias and facts.name in NO_BIASES:
        return f"transformers passes over {bias} in a GGUF file"
    writer, config = GGUFWriter(None, facts.name), normalised(checkpoint)
    factors = hyperparameters(writer, config, facts)
    said = {key.removeprefix(f"{facts.name}."): value.value for key, value in writer.kv_data[0].items()}
    if factors is not None or "rope.scaling.type" in said:
        return "transformers passes over the scaling of rotary positions in a GGUF file"
    read, scalar = config_read(facts.name, config), "query_pre_attn_scalar"
    taken = {
        "head_dim": (head_size(read), said["attention.key_length"]),
        "a head's rotary channels": (turned(read), said["rope.dimension_count"]),
        scalar: (getattr(read, scalar, None), config.get(scalar)),
    }
    for what, (found, own) in taken.items():
        if found != own:
            return f"transformers takes {what} {found} for {facts.name}, whatever a GGUF file says, and it has {own}"
    pad, n_ids = read.pad_token_id or 0, config["vocab_size"]
    if pad >= n_ids:
        return (
            f"transformers takes pad_token_id {pad} for {facts.name}, whatever a GGUF file says, and it has {n_ids} ids"
        )
    return None


def gguf(held: stored.Stored, config: dict[str, Any], target: Path, checkpoint: Path) -> dict[str, Any]:
    """model.gguf: each linear and a quantised embedding in the type that holds its codes, the rest as it is, norms in
    float32. What to record has what it takes, in bits and 10⁶ bytes."""
    if not held.packed:
        raise InputError(
            f"{held.file.path}: its weights are simulated (storage_reason in quantize.json says why), and GGUF stores "
            "codes; export a method whose storage is packed"
        )
    layout, every = held.file.layout(), held.packed | held.embedding
    widths = {name: (held.shape(name) if name in held.packed else layout[f"{name}.weight"][1])[1] for name in every}
    kinds = {name: kind_of(f"{held.file.path}: {name}", grid, widths[name]) for name, grid in sorted(every.items())}
    counts = Counter(kinds[name].name for name in held.packed)
    most = counts.most_common(1)[0][0]  # what the file is called after
    names = gguf_file.Names(config)
    weights = {f"{name}.weight": name for name in kinds}

    def tensor(key: str) -> tuple[np.ndarray, str]:
        """As the file has it, and its type."""
        if key not in weights:
            value = names.value(key, held.file.get(key))
            return gguf_file.plain(value[names.rows(key.rpartition(".")[0], len(value))])
        name, kind = weights[key], kinds[weights[key]]
        linear = regrouped(held.linear(name), kind.size)
        linear = linear if kind.size < kind.whole else in_float16(linear)
        order = names.rows(name, len(linear.codes))
        linear = linear._replace(codes=linear.codes[order], step=linear.step[order], zero=linear.zero[order])
        return kind.blocks(name, linear), kind.name

    def tensors() -> Iterator[tuple[str, np.ndarray, str]]:
        rest = {key for key in held.file.names if key.endswith(".bias") or key.rpartition(".")[0] not in kinds}
        for found, keys in names.sources([*weights, *sorted(rest - held.steps)]).items():
            parts = [tensor(key) for key in keys]
            values = [value for value, _ in parts]
            yield found, np.stack(values) if gguf_file.EXPERT.match(keys[0]) else values[0], parts[0][1]

    gguf_file.write(target / "model.gguf", config, checkpoint, tensors(), FILE_TYPES.get(most, most))
    worst = 0.0
    read = gguf_file.Weights(target / "model.gguf")
    sizes = read.bytes()
    stored_bits = 8 * sum(sizes[name] for name in names.sources(f"{name}.weight" for name in held.packed))
    n_weights = sum(math.prod(held.shape(name)) for name in held.packed)
    for found, keys in names.sources(weights).items():
        for i, key in enumerate(keys):
            w = read.get(found, i)
            w = w[names.rows(weights[key], len(w)).argsort()]
            worst = max(worst, deviation(w, held.linear(weights[key])))
    made = {"type": "+".join(sorted({kind.name for kind in kinds.values()})), "largest_deviation": worst}
    size = (target / "model.gguf").stat().st_size
    return made | {"bits_per_weight": stored_bits / n_weights, **gguf_mb(sizes, size)}
