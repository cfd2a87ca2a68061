"""Tokens a second of a packed 4-bit checkpoint through INT4 products that anyone can install, beside bfloat16.

    python benchmarks/int4_speed.py results/MODEL/METHOD/checkpoint [--vllm .tools/vllm/bin/vllm] > int4_speed.csv

The codes are the checkpoint's own; nothing is quantised here. A row for each product and batch:
  bf16                the same weights dequantised: transformers' model and its `generate`
  int4pack            that model with each packed linear as PyTorch's own product: on a GPU tinygemm
                      (_weight_int4pack_mm, which torchao's int4 weight-only path calls), on a CPU its counterpart
  vllm bf16, vllm     `vllm bench latency` of the dequantised and of the packed checkpoint, where vLLM is installed

`tokens_per_s` is batch × new tokens over the seconds of a whole `generate`, its short prompt and the sampling included;
with transformers on a GPU that is one compiled CUDA graph a token over a static cache (generate's own compilation). So
rows of transformers compare a product with a product, and those of vLLM with one another: not an engine with an engine.
`logits_error` is the norm of
the logits' difference from bf16's over their norm: bfloat16's own rounding, a percent or so. A part that fails says so
in its row's `error`, and the rest goes on.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow_scripts"))

import torch
from torch import Tensor, nn

from quant.checkpoints import fitting, stored
from quant.checkpoints.formats.dense import dense
from quant.errors import InputError
from quant.evaluation.perplexity import load_model
from quant.files.artifacts import read_json
from quant.recipe import grids
from quant.recipe.grids import Codes

COLUMNS = ("device", "torch", "model", "product", "batch", "tokens_per_s", "speedup", "linears_mb", "logits_error")
GROUPS = (256, 128, 64, 32)  # that the products take
PROMPT = 16  # tokens


class Int4Pack(nn.Module):
    """A packed linear [out, in] through PyTorch's INT4 product, its groups cut to `size`, bfloat16 in and out."""

    def __init__(self, linear: Codes, size: int, bias: Tensor | None, device: str) -> None:
        super().__init__()
        linear = fitting.regrouped(linear, size)
        self.size, self.n_out = size, len(linear.codes)
        self._on_gpu = torch.device(device).type == "cuda"
        offset = 8 if linear.grid.symmetric else 0
        codes = grids.from_groups(linear.codes + offset, linear.n_in).to(torch.int32).to(device)
        if self._on_gpu:  # two codes a byte, the first in the high bits, then its own tiling
            tiles = next(tiles for tiles in (8, 4, 2) if linear.n_in % (16 * tiles) == 0)
            pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
            weight = torch._convert_weight_to_int4pack(pairs, tiles)
        else:
            weight = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
        # ŵ = (code - 8)·step + zero, [in/g, out, 2]
        zero = (8 - offset - linear.zero) * linear.step
        scales = torch.cat([linear.step, zero], 2).transpose(0, 1).contiguous().to(device, torch.bfloat16)
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if bias is None else bias.to(device, torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        product = torch._weight_int4pack_mm if self._on_gpu else torch._weight_int4pack_mm_for_cpu
        y = product(x.reshape(-1, x.shape[-1]), self.weight, self.size, self.scales).view(*x.shape[:-1], self.n_out)
        return y if self.bias is None else y + self.bias


def dequantize(checkpoint: Path, folder: Path) -> set[str]:
    """The same weights dense, with all else that the checkpoint has; names of the linears that were packed."""
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    with stored.opened(checkpoint) as held:
        if {grid.bits for grid in held.packed.values()} != {4}:
            raise InputError(f"{checkpoint}: is not packed in 4 bits; give such a method's checkpoint")
        dense(held, read_json(checkpoint / "config.json"), folder)
        return set(held.packed)


def replace_linears(model: nn.Module, checkpoint: Path, device: str) -> None:
    with stored.opened(checkpoint) as held:
        size = fitting.fitting_size(held, GROUPS, "PyTorch's INT4 product")
        for name in sorted(held.packed):
            parent, _, last = name.rpartition(".")
            bias = model.get_submodule(name).bias
            setattr(model.get_submodule(parent), last, Int4Pack(held.linear(name), size, bias, device))


def linear_bytes(model: nn.Module, names: set[str]) -> int:
    """Of the weights that are packed in the checkpoint, as the model holds them."""
    tensors = (t for name in names for t in model.get_submodule(name).state_dict().values())
    return sum(t.numel() * t.element_size() for t in tensors)


@torch.inference_mode()
def generate_speed(model: Any, batch: int, n: int, device: str) -> float:
    """Tokens a second of the second of two runs: the first compiles."""
    ids = torch.randint(0, model.config.vocab_size, (batch, PROMPT), device=device)
    wanted = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False, "cache_implementation": "static"}
    for _ in range(2):
        begun = time.perf_counter()
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **wanted).cpu()
        spent = time.perf_counter() - begun
    assert out.shape == (batch, PROMPT + n)
    return batch * n / spent


def vllm_speed(vllm: str, model: Path, batch: int, n: int) -> float:
    """By vLLM's own benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "latency.json")
        sizes = {"batch-size": batch, "input-len": PROMPT, "output-len": n, "max-model-len": PROMPT + n}
        options = [f"--{name}={value}" for name, value in (sizes | {"num-iters-warmup": 2, "num-iters": 5}).items()]
        command = [vllm, "bench", "latency", f"--model={model}", *options, f"--output-json={found}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"vllm bench latency: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
        return batch * n / json.loads(found.read_text())["avg_latency"]


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def measure(checkpoint: Path, options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each product and batch."""
    device, dense = options.device, folder / "dense"
    names = dequantize(checkpoint, dense)
    model: Any = load_model(dense, device, torch.bfloat16)
    # random weights end a text at any token
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    ids = torch.arange(PROMPT, device=device)[None]
    with torch.inference_mode():
        expected = model(ids).logits.float()
    baseline: dict[tuple[str, int], float] = {}

    def row(common: dict[str, Any], batch: int, speed: float) -> dict[str, Any]:
        first = baseline.setdefault((common["product"].split()[0].replace("int4pack", "bf16"), batch), speed)
        return common | {"batch": batch, "tokens_per_s": f"{speed:.1f}", "speedup": f"{speed / first:.2f}"}

    for product in ("bf16", "int4pack"):
        common: dict[str, Any] = {"product": product}
        try:
            if product == "int4pack":
                replace_linears(model, checkpoint, device)
                with torch.inference_mode():
                    error = (model(ids).logits.float() - expected).norm() / expected.norm()
                common["logits_error"] = f"{error.item():.2g}"
            common["linears_mb"] = f"{linear_bytes(model, names) / 1e6:.1f}"
            for batch in options.batch:
                torch._dynamo.reset()
                yield row(common, batch, generate_speed(model, batch, options.new, device))
        except (InputError, RuntimeError, NotImplementedError, StopIteration) as error:
            yield common | {"error": one_line(error)}
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    for product, place in (("vllm bf16", dense), ("vllm", checkpoint)) if options.vllm else ():
        try:
            for batch in options.batch:
                yield row({"product": product}, batch, vllm_speed(options.vllm, place, batch, options.new))
        except (OSError, RuntimeError) as error:
            yield {"product": product, "error": one_line(error)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="packed in 4 bits")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--new", type=int, default=240, help="tokens to generate")
    parser.add_argument("--vllm", default=shutil.which("vllm"), help="the command; that on the PATH if there is one")
    options = parser.parse_args(arguments)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    writer = csv.DictWriter(sys.stdout, (*COLUMNS, "error"))
    writer.writeheader()
    try:
        with tempfile.TemporaryDirectory() as folder:
            for row in measure(options.checkpoint, options, Path(folder)):
                writer.writerow({"device": name, "torch": torch.__version__, "model": str(options.checkpoint)} | row)
                sys.stdout.flush()
    except InputError as error:
        sys.exit(f"ERROR {error}")


if __name__ == "__main__":
    main()
