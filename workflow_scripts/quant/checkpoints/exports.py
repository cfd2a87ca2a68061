"""A checkpoint in the formats of other tools: dense weights, AutoAWQ's GEMM layout, GGUF.

Codes and steps go over as they are; what a format cannot hold exactly is refused in one line. Each file is read back
after it is written, and the largest deviation from the checkpoint, in steps, stands in the record.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quant.checkpoints import gemm, gguf_file, stored
from quant.errors import InputError
from quant.files import tensorfile
from quant.files.artifacts import copy, read_json, write_plain_json
from quant.recipe import grids
from quant.recipe.grids import Codes

AWQ_SIZES = (128, 64, 32)  # groups that AutoAWQ's readers have products for, largest first


def regrouped(linear: Codes, size: int) -> Codes:
    """The same weights in smaller groups, each with the step and zero of the group that it was part of."""
    parts = linear.codes.shape[2] // size
    codes = linear.codes.reshape(len(linear.codes), -1, size)
    step, zero = (t.repeat_interleave(parts, 1) for t in (linear.step, linear.zero))
    return Codes(codes, step, zero, linear.grid._replace(group_size=size), linear.n_in)


def needs(held: stored.Stored, bits: tuple[int, ...], what: str) -> None:
    """Refuses a checkpoint that is not packed in these widths."""
    if not held.packed:
        reason = "its weights are simulated (storage_reason in quantize.json says why)"
        raise InputError(
            f"{held.file.path}: {reason}, and {what} stores codes; export a method whose storage is packed"
        )
    for name, grid in sorted(held.packed.items()):
        if grid.bits not in bits:
            raise InputError(
                f"{held.file.path}: {name} has {grid.bits} bits, and {what} holds {' or '.join(map(str, bits))}; "
                "export another method"
            )


def fitting_size(held: stored.Stored, sizes: tuple[int, ...], what: str) -> int:
    """The largest of the sizes that divides every group, by which a linear's groups can be cut."""
    widths = {name: int(held.file.get(f"{name}.weight_shape")[1]) for name in held.packed}
    found = {name: n_in if (own := held.packed[name].group_size) == -1 else own for name, n_in in widths.items()}
    for size in sizes:
        if all(group % size == 0 for group in found.values()):
            return size
    name = next(name for name, group in found.items() if group % sizes[-1])
    raise InputError(
        f"{held.file.path}: {name} has groups of {found[name]} inputs, which {what}'s {sizes[-1]} does not divide; "
        f"use a group_size that is a multiple of {sizes[-1]}"
    )


def half_steps(name: str, step: Tensor, what: str) -> Tensor:
    """Steps in float16, refused where that rounds them."""
    half = step.half()
    if not torch.equal(half.float(), step):
        raise InputError(
            f"{name}: a step of {step[half.float() != step][0].item():g} is no float16, which {what} stores; export "
            "dense, or quantise a float16 model"
        )
    return half


def in_float16(linear: Codes) -> Codes:
    """A linear whose steps below float16's normal numbers are the next larger of those it has, with codes for them: its
    weights are next to nothing, and stay within half such a step of what they were."""
    kind = torch.finfo(torch.float16)
    unit = kind.smallest_normal * kind.eps
    step = torch.where(linear.step < kind.smallest_normal, (linear.step / unit).ceil() * unit, linear.step)
    if torch.equal(step, linear.step):
        return linear
    codes = grids.encode(grids.decode(linear.codes, linear.step, linear.zero), step, linear.zero, linear.grid)
    return linear._replace(codes=codes, step=step)


# ---- the formats; each writes into `target` and returns what the record says of it


def without_packing(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "quantization_config"}


def dense(held: stored.Stored, config: dict[str, Any], target: Path) -> dict[str, Any]:
    """model.safetensors in the model's own 16-bit type: bfloat16 would round what float16 holds."""
    before = held.file.layout()
    matrices = [dtype for dtype, shape in before.values() if len(shape) == 2]
    dtype = before[f"{next(iter(held.packed))}.weight_scale"][0] if held.packed else matrices[0]
    shapes = {f"{name}.weight": tuple(held.file.get(f"{name}.weight_shape").tolist()) for name in held.packed}
    layout = {key: value for key, value in before.items() if key.rpartition(".")[0] not in held.packed}
    layout |= {key: value for key, value in before.items() if key.endswith(".bias")}
    layout |= {key: (dtype, shape) for key, shape in shapes.items()}
    with tensorfile.writing(target / "model.safetensors", layout, held.file.metadata) as out:
        for key in layout:
            name = key.removesuffix(".weight")
            out.put(key, held.weight(name).to(dtype) if key in shapes else held.file.get(key))
    write_plain_json(target / "config.json", without_packing(config))
    worst = 0.0
    with tensorfile.opened(target / "model.safetensors") as file:
        for name in held.packed:
            worst = max(worst, deviation(file.get(f"{name}.weight", dtype=torch.float32), held.linear(name)))
    return {"dtype": str(dtype).removeprefix("torch."), "largest_deviation": worst}


def deviation(w: Tensor, linear: Codes) -> float:
    """Largest |w - ŵ| in steps, or in float16's smallest normal number where a step is less; w [out, in]."""
    difference = grids.to_groups(w - linear.dequantize(), linear.grid.group_size)
    step = linear.step.clamp(min=torch.finfo(torch.float16).smallest_normal)
    return float((difference / step).abs().max())


def awq_linear(name: str, linear: Codes) -> gemm.Packed:
    """One linear in the GEMM layout; a symmetric grid is one with zero 8."""
    if len(linear.codes) % 8:
        raise InputError(
            f"{name}: its {len(linear.codes)} outputs are no multiple of 8, which AutoAWQ's layout needs; export dense"
        )
    offset = 8 if linear.grid.symmetric else 0
    codes = grids.from_groups(linear.codes, linear.n_in) + offset
    return gemm.Packed(
        gemm.pack_int4(codes.T.contiguous()),
        gemm.pack_int4((linear.zero[:, :, 0] + offset).T.contiguous()),
        half_steps(name, linear.step[:, :, 0], "AutoAWQ's layout").T.contiguous(),
    )


def awq(held: stored.Stored, config: dict[str, Any], target: Path) -> dict[str, Any]:
    """AutoAWQ's GEMM layout, everything else in float16, as its readers take it."""
    needs(held, (4,), "AutoAWQ's layout")
    size = fitting_size(held, AWQ_SIZES, "AutoAWQ")
    tensors: dict[str, Tensor] = {}
    for name in held.packed:
        parts = awq_linear(name, in_float16(regrouped(held.linear(name), size)))._asdict()
        tensors |= {f"{name}.{part}": value for part, value in parts.items()}
    for key in held.file.names:
        if key.rpartition(".")[0] not in held.packed or key.endswith(".bias"):
            value = held.file.get(key)
            tensors[key] = value.half() if value.is_floating_point() else value
            if not torch.isfinite(tensors[key]).all():
                raise InputError(f"{key}: overflows float16, which AutoAWQ's readers take; export dense")
    tensorfile.save(target / "model.safetensors", tensors, held.file.metadata)
    left = {
        key.removesuffix(".weight") for key, value in tensors.items() if value.ndim == 2 and key.endswith(".weight")
    }
    quantization = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": "gemm"}
    quantization["modules_to_not_convert"] = sorted(held.file.naming.both({"lm_head"} | left))
    changed = {"dtype": "float16", "quantization_config": quantization}
    write_plain_json(target / "config.json", without_packing(config) | changed)
    worst = 0.0
    with tensorfile.opened(target / "model.safetensors") as file:
        for name, read in gemm.read_packed(file, dict.fromkeys(held.packed, 0)).items():
            worst = max(worst, deviation(read.unpack().dequantize(), held.linear(name)))
    return {"group_size": size, "largest_deviation": worst}


def blocks_q4_0(name: str, linear: Codes) -> np.ndarray:
    """[out, blocks·18] bytes: float16 step, then 16 bytes of two codes each, the first half of a block in low bits."""
    codes = (linear.codes + 8).to(torch.uint8)
    return block_bytes([half_steps(name, linear.step, "GGUF's Q4_0")], codes[:, :, :16] | (codes[:, :, 16:] << 4))


def blocks_q4_1(name: str, linear: Codes) -> np.ndarray:
    """[out, blocks·20]: float16 step and least value, then the codes; the least value -zero·step is rounded to that."""
    codes = linear.codes.to(torch.uint8)
    step, least = half_steps(name, linear.step, "GGUF's Q4_1"), (-linear.zero * linear.step).half()
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
GGUF_BLOCK = 32


def gguf(held: stored.Stored, config: dict[str, Any], target: Path, checkpoint: Path) -> dict[str, Any]:
    """model.gguf: each linear as Q4_0 (symmetric), Q4_1 (with zero points) or Q8_0, the rest as it is, norms in
    float32."""
    needs(held, (4, 8), "GGUF")
    for name, grid in sorted(held.packed.items()):
        if (grid.bits, grid.symmetric) not in BLOCKS:
            raise InputError(
                f"{held.file.path}: {name}: GGUF has no blocks of {grid.bits} bits with zero points; export a "
                "symmetric method"
            )
    size = fitting_size(held, (GGUF_BLOCK,), "GGUF")
    kinds = Counter(BLOCKS[grid.bits, grid.symmetric][0] for grid in held.packed.values())
    kind = kinds.most_common(1)[0][0]  # what the file is called after
    names = gguf_file.Names(config)

    def tensors() -> Iterator[tuple[str, np.ndarray, str]]:
        for name in sorted(held.packed):
            linear = in_float16(regrouped(held.linear(name), size))
            order = names.rows(name, len(linear.codes))
            linear = linear._replace(codes=linear.codes[order], step=linear.step[order], zero=linear.zero[order])
            own, blocks = BLOCKS[linear.grid.bits, linear.grid.symmetric]
            yield names.of(f"{name}.weight"), blocks(name, linear), own
        for key in sorted(held.file.names):
            name = key.rpartition(".")[0]
            if name not in held.packed or key.endswith(".bias"):
                value = held.file.get(key)
                yield names.of(key), *gguf_file.plain(value[names.rows(name, len(value))])

    gguf_file.write(target / "model.gguf", config, checkpoint, tensors(), kind)
    worst = 0.0
    read = gguf_file.Weights(target / "model.gguf")
    for name in held.packed:
        w = read.get(names.of(f"{name}.weight"))
        w = w[names.rows(name, len(w)).argsort()]
        worst = max(worst, deviation(w, held.linear(name)))
    return {"type": "+".join(sorted(kinds)), "largest_deviation": worst}


def try_forward(checkpoint: Path, dtype: torch.dtype, what: str) -> None:
    """Refuses an export whose activations leave the type that it is written in, by the first module that they leave it
    in: a forward pass of a few tokens, of the checkpoint that it is made from."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").eval()
    ids = torch.arange(32)[None] % model.config.get_text_config().vocab_size
    left: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, out: Any) -> None:
            if isinstance(out, Tensor) and not left and not torch.isfinite(out).all():
                left.append(name)

        return hook

    with torch.inference_mode():
        model(ids)  # packed weights are unpacked at the first forward pass
        model.to(dtype)
        for name, module in model.named_modules():
            if next(module.children(), None) is None:
                module.register_forward_hook(note(name))
        finite = bool(torch.isfinite(model(ids).logits).all())
    if not finite:
        kind = str(dtype).removeprefix("torch.")
        raise InputError(
            f"{checkpoint}: activations leave {kind}, which {what} is written in, first in {(left or ['its head'])[0]}"
            f"; {'export dense' if what == 'awq' else 'give the model in bfloat16 or float32'}"
        )


FORMATS = ("dense", "awq", "gguf")


def export(checkpoint: Path, target: Path, kind: str, model_fingerprint: str) -> dict[str, Any]:
    """One of FORMATS from a method's checkpoint into `target`, with its tokenizer; returns what to record."""
    config = read_json(checkpoint / "config.json")
    target.mkdir(parents=True, exist_ok=True)
    with stored.opened(checkpoint, model_fingerprint) as held:
        if kind == "gguf":
            made = gguf(held, config, target, checkpoint)
        else:
            made = {"dense": dense, "awq": awq}[kind](held, config, target)
            written = made.get("dtype") or config.get("dtype") or "float32"
            try:
                try_forward(checkpoint, torch.float16 if kind == "awq" else getattr(torch, written), kind)
            except InputError:
                (target / "model.safetensors").unlink()
                raise
            for file in checkpoint.iterdir():
                if file.is_file() and file.name not in ("model.safetensors", "config.json", "README.md"):
                    copy(file, target / file.name)
        provenance = json.loads(held.file.metadata["provenance"])
    size = sum(file.stat().st_size for file in target.glob("model.*")) / 1e6
    return {"format": kind, "size_mb": size, **made, "provenance": provenance}
