"""AutoAWQ 0.2.9 as a method: what the library is given, and its packed checkpoint back to dense weights.

The library runs in an environment of its own (autoawq_worker.py), since it wants an older transformers. Its INT4
product needs a GPU, so the packed weights are decoded here and measured like every other method's.
"""

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant.checkpoints.coverage import quantized_share
from quant.checkpoints.gemm import read_packed
from quant.data.tokens import Tokens
from quant.data.tokens import load as load_tokens
from quant.errors import InputError
from quant.files import naming, pieces, tensorfile
from quant.files.artifacts import copy, read_json, versions
from quant.files.tensorfile import put_finite
from quant.methods.autoawq_environment import interpreter_of, run_worker
from quant.models.compute import halving
from quant.recipe.quantized import QuantizedLinear, rounding_statistics
from quant.records.method import MethodRecord, Provenance, Summary
from quant.records.model import ModelRecord

logger = logging.getLogger("quant")

# each tried: their scales fold into norms and linears alone; others get modules that plain transformers does not load
MODEL_TYPES = ("llama", "granite", "mistral", "qwen2", "qwen3", "gemma", "phi3")
NOT_CLIPPED = ("q_", "k_")  # in a linear's name; the library's own list, as far as these models have such names
CLIP_ROWS = 64  # its clipping goes through so many output channels at a time
PACK_ROWS = 32  # its packing counts its int32 columns as out // 32 · 4


# ---- what the library is given


def check_model(checkpoint: Path, linears: dict[str, int], recipe: dict[str, Any]) -> None:
    """Refuses what AutoAWQ would end on with an assertion: an architecture or shapes that it does not take."""
    config = read_json(checkpoint / "config.json")
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise InputError(
            f"{checkpoint}: AutoAWQ's scales fold away for model_type {', '.join(MODEL_TYPES)}, not {kind!r}; leave "
            "autoawq out of study.methods for this model"
        )
    if any(isinstance(value, dict) for value in (config.get("rope_parameters") or {}).values()):
        raise InputError(
            f"{checkpoint}: its rope_parameters differ by layer, which the transformers of AutoAWQ cannot say; leave "
            "autoawq out of study.methods for this model"
        )
    with tensorfile.opened(checkpoint / "model.safetensors") as file:
        shapes = {name: file.layout()[f"{name}.weight"][1] for name in linears}
    size = recipe["group_size"]
    for name, (n_out, n_in) in shapes.items():
        if n_in % size:
            fitting = [g for g in (128, 64, 32, 16, 8) if all(shape[1] % g == 0 for shape in shapes.values())]
            raise InputError(
                f"{name}: its {n_in} inputs are no multiple of group_size {size}, which AutoAWQ needs; "
                + (f"write group_size: {fitting[0]}" if fitting else "leave autoawq out of study.methods")
            )
        clipped = recipe["clip"] and not any(part in name for part in NOT_CLIPPED)
        multiple = CLIP_ROWS if clipped else PACK_ROWS
        if n_out % multiple:
            raise InputError(
                f"{name}: its {n_out} outputs are no multiple of {multiple}, which AutoAWQ's "
                f"{'clipping' if clipped else 'packing'} needs; leave autoawq out of study.methods for this model"
            )


def used(tokens: Tokens) -> int:
    """Tokens that AutoAWQ calibrates on: the sequences joined and cut at the longest one's length, less the rest."""
    width = max(len(sequence) for sequence in tokens.sequences)
    return tokens.count // width * width


# ---- running it


# ---- what it left, as a checkpoint like any other


def write_checkpoint(
    source: Path,
    packed_path: Path,
    target: Path,
    linears: dict[str, int],
    folds: dict[str, Tensor],
    provenance: Provenance,
) -> tuple[list[dict[str, Any]], float]:
    """target/model.safetensors, dense in the source's dtypes, beside its other files; rows per linear, bits a weight.

    Norms and biases are as AutoAWQ scaled them; what it left alone is the original's, not its float16 copy.
    """
    rows: list[dict[str, Any]] = []
    bits = weights = 0
    with tensorfile.opened(source / "model.safetensors") as model, tensorfile.opened(packed_path) as file:
        layout = model.layout()
        metadata = {"format": "pt", "provenance": json.dumps(provenance)}
        metadata |= {key: model.metadata[key] for key in (pieces.KEY, naming.KEY) if key in model.metadata}
        packed = read_packed(file, linears)
        with tensorfile.writing(target / "model.safetensors", layout, metadata) as out:
            for name, parts in packed.items():
                w, linear = model.get(f"{name}.weight", dtype=torch.float32), QuantizedLinear(*parts.unpack())
                put_finite(out, {f"{name}.weight": linear.dequantize()}, target)
                bits, weights = bits + parts.bits, weights + w.numel()
                scaled = w * folds.get(f"{name}.input", torch.ones(1))
                scaled = scaled * folds.get(f"{name}.output", torch.ones(1))[:, None]
                row = {"linear": name, "layer": linears[name], "alpha": None, "objective": None}
                rows.append(row | rounding_statistics(scaled, linear))
            for name in sorted(set(model.names) - {f"{linear}.weight" for linear in linears}):
                value = model.get(name)
                stored = file.get(name, dtype=value.dtype) if name in file.names else value
                if not torch.equal(value.half().to(value.dtype), stored):
                    value = stored
                put_finite(out, {name: value}, target)
    for path in source.iterdir():
        if path.is_file() and path.name != "model.safetensors":
            copy(path, target / path.name)
    return rows, bits / weights


def quantize_autoawq(
    source: Path,
    target: Path,
    folds_path: Path,
    tokens_path: Path,
    environment: Path,
    model: ModelRecord,
    recipe: dict[str, Any],
    device: str,
    batch_tokens: int,
    names: dict[str, str],
) -> MethodRecord:
    """One model through AutoAWQ; writes checkpoint and folds, returns the record (see quant.quantize).

    model: convert's record; batch_tokens: of a forward pass. packed_mb (10⁶ bytes) is the library's own checkpoint.
    """
    check_model(source, model["linears"], recipe)
    tokens = load_tokens(tokens_path, model_fingerprint=model["fingerprint"])
    python = interpreter_of(environment)
    longest = max(len(sequence) for sequence in tokens.sequences)
    logger.info("AutoAWQ calibrates on %d of the %d tokens, %d at a time", used(tokens), tokens.count, longest)
    for left in target.parent.glob(".autoawq.*"):  # by a job that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=".autoawq.", dir=target.parent) as name:
        folder = Path(name).absolute()
        job: dict[str, Any] = {
            "model": str(source.absolute()),
            "tokens": str(tokens_path.absolute()),
            "out": str(folder / "packed"),
        }
        job |= {"device": device, "threads": torch.get_num_threads()}
        job |= {key: recipe[key] for key in ("group_size", "clip")}
        result = halving(
            lambda n: run_worker(python, job | {"parallel": max(1, n // longest)}, folder),
            batch_tokens,
            tokens.sequences,
        )
        packed_path = folder / "packed" / "model.safetensors"
        packed_mb = packed_path.stat().st_size / 1e6
        provenance: Provenance = {
            "model": names["model"],
            "method": names["method"],
            "recipe": recipe,
            "seed": recipe["seed"],
            "versions": versions() | result["versions"],
            "model_fingerprint": model["fingerprint"],
            "token_fingerprint": tokens.fingerprint,
            "calibration_tokens": used(tokens),
        }
        with tensorfile.opened(folder / "packed" / "scales.safetensors") as file:
            folds = {name: file.get(name) for name in sorted(file.names)}
        rows, bits = write_checkpoint(source, packed_path, target, model["linears"], folds, provenance)
    tensorfile.save(folds_path, folds, {"provenance": json.dumps(provenance)})
    share_among_linears(rows, result["block_seconds"])
    logger.info("AutoAWQ's packed checkpoint: %.1f MB, %.3f bits a weight", packed_mb, bits)
    with tensorfile.opened(source / "model.safetensors") as file:
        coverage = quantized_share(file.layout(), model["linears"])
    summary: Summary = {
        "bits_per_weight": bits,
        "quantize_s": result["seconds"],
        "storage": "simulated",
        "packed_mb": packed_mb,
        "storage_reason": "AutoAWQ's own layout needs a GPU to run, so its codes are decoded here",
        **coverage,
        "left": model["left"],
        "no_kernels": "",
    }
    return {"linears": rows, "summary": summary, "provenance": provenance}


def share_among_linears(rows: list[dict[str, Any]], block_seconds: dict[str, float]) -> None:
    """Gives each row `milliseconds`: its part of its block's time, the library searching whole groups of linears."""
    blocks = [next(name for name in block_seconds if row["linear"].startswith(f"{name}.")) for row in rows]
    for row, block in zip(rows, blocks, strict=True):
        row["milliseconds"] = 1e3 * block_seconds[block] / blocks.count(block)
