"""Tokens a second of a packed checkpoint through real INT4 products, beside bfloat16 on the same weights.

    python benchmarks/int4_speed.py results/MODEL/METHOD/checkpoint > int4_speed.csv
    python benchmarks/int4_speed.py --random > int4_speed.csv      # a random MiniCPM-2B-shaped Granite, no file needed

The codes are the checkpoint's own; nothing is quantised here. Kernels:
  bf16       dense weights, cuBLAS: what the others are compared with
  tinygemm   torch.ops.aten._weight_int4pack_mm, the product that torchao's int4 weight-only path calls
  own        int4_product.cu for one row, a Triton product for up to 16; prompts unpack and multiply in bf16
  cpu        torch.ops.aten._weight_int4pack_mm_for_cpu, where there is no GPU
Decoding is a static cache and one CUDA graph a token, of the model as it is (eager), compiled, and fused: with one
Triton kernel for each of norm, attention and gating, so that the rest costs the same for every product. In `own` on a
Hopper GPU one row's products norm what they read and gate what they write instead, attention is in CUDA too, and each
of a layer's five kernels begins before the one before it ends (int4_kernels.OVERLAP). q/k/v and gate/up are one
product each, in bf16 too. `limit_tokens_per_s` is what reading each weight and the cache once a step allows at the
bandwidth that a copy reaches on the same machine. A part that fails says so in its row's `error` and the rest goes on.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from int4_decoder import Checkpoint, Decoder, Random, Shape, Weights
from int4_products import KERNELS
from quant.checkpoints.stored import opened
from quant.errors import InputError

COLUMNS = (
    *("device", "torch", "model", "kernel", "mode", "phase", "batch", "context", "tokens_per_s", "speedup"),
    *("limit_tokens_per_s", "share_of_limit", "linears_mb", "bandwidth_gb_s", "logits_error", "error"),
)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str, times: int) -> float:
    """Of one call, the mean of `times`."""
    synchronize(device)
    begun = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(device)
    return (time.perf_counter() - begun) / times


def bandwidth(device: str, size: int) -> float:
    """Bytes a second of a copy, its reads and its writes counted."""
    a = torch.zeros(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    b.copy_(a)
    return 2 * size / seconds_of(lambda: b.copy_(a), device, 10)


def captured(work: Callable[[], None], model: Decoder) -> Callable[[], None]:
    """A CUDA graph of one step; capturing runs it a few times, so the place is put back."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    model.place.zero_()
    return graph.replay


@torch.inference_mode()
def prompt_logits(model: Decoder, ids: Tensor) -> Tensor:
    model.allocate(len(ids), ids.shape[1])
    return model(ids, torch.arange(ids.shape[1], device=ids.device))


@torch.inference_mode()
def prompt_speed(model: Decoder, batch: int, context: int, device: str, times: int) -> float:
    """Tokens a second of reading a prompt of `context` tokens."""
    ids = torch.randint(0, model.shape.vocabulary, (batch, context), device=device)
    place = torch.arange(context, device=device)
    model.allocate(batch, context)
    model(ids, place)
    return batch * context / seconds_of(lambda: model(ids, place), device, times)


@torch.inference_mode()
def decode_speed(model: Decoder, batch: int, context: int, device: str, mode: str) -> float:
    """Tokens a second of writing until the cache of `context` tokens is full."""
    model.allocate(batch, context)
    if mode == "compiled":  # one compilation serves every block
        torch._dynamo.reset()
        for block in model.blocks:
            block.compile(fullgraph=True)
    work = partial(model.step, mode)
    if device == "cuda":
        work = captured(work, model)
    else:
        work()
    model.place.zero_()
    for _ in range(4):
        work()
    model.place.zero_()
    spent = seconds_of(work, device, context - 4)
    for block in model.blocks:
        block._compiled_call_impl = None
    return batch / spent


def random_shape(options: argparse.Namespace) -> Shape:
    """MiniCPM-2B as Granite, unless options say otherwise."""
    size, scale_depth, dim_model_base = options.hidden // options.heads, 1.4, 256
    multipliers = (12.0, scale_depth / options.layers**0.5, options.hidden / dim_model_base, size**-0.5)
    return Shape(
        options.hidden, options.mlp, options.layers, options.heads, options.heads, size, options.vocabulary, 1e-5,
        10000.0, *multipliers,
    )  # fmt: skip


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def measure(weights: Weights, options: argparse.Namespace, write: Callable[[dict[str, Any]], None]) -> None:
    """A row for each kernel, mode, phase and batch."""
    device = options.device
    speed = bandwidth(device, 2**31 if device == "cuda" else 2**27)
    kernels = options.kernels or (["bf16", "tinygemm", "own"] if device == "cuda" else ["bf16", "cpu"])
    modes = options.modes or (["eager", "compiled", "fused"] if device == "cuda" else ["eager", "compiled"])
    ids = torch.randint(0, weights.shape.vocabulary, (1, 32), device=device)
    baseline: dict[tuple[str, str, int], float] = {}
    reference = None
    for kernel in kernels:
        common = {"kernel": kernel, "bandwidth_gb_s": round(speed / 1e9, 1)}
        try:
            model = Decoder(weights, KERNELS[kernel], torch.bfloat16).eval()
            logits = prompt_logits(model, ids).float()
            logits = torch.cat([logits, *(decoded_logits(model, ids, mode == "fused") for mode in modes)])
            reference = logits if kernel == "bf16" else reference
            if reference is not None:
                error = (logits - reference).abs().max() / reference.std()
                common["logits_error"] = f"{error.item():.3g}"
            common["linears_mb"] = round(model.linear_bytes() / 1e6, 1)
        except Exception as error:  # of a kernel that this machine has not; the others are still worth their rows
            write(common | {"error": one_line(error)})
            continue
        for batch in options.batch:
            prompt = partial(prompt_speed, model, batch, options.prompt, device, options.times)
            runs = [("prompt", "eager", prompt)]
            runs += [
                ("decode", mode, partial(decode_speed, model, batch, options.context, device, mode))
                for mode in modes
                if mode != "compiled" or KERNELS[kernel].compiles
            ]
            for phase, mode, run in runs:
                row = common | {"phase": phase, "mode": mode, "batch": batch}
                row["context"] = options.prompt if phase == "prompt" else options.context
                try:
                    found = run()
                    row["tokens_per_s"] = round(found, 1)
                    key = (phase, mode, batch)
                    if kernel == "bf16":
                        baseline[key] = found
                    if key in baseline:
                        row["speedup"] = round(found / baseline[key], 3)
                    if phase == "decode":
                        limit = batch * speed / model.step_bytes()
                        row |= {"limit_tokens_per_s": round(limit, 1), "share_of_limit": round(found / limit, 3)}
                except Exception as error:
                    row["error"] = one_line(error)
                write(row)
        del model, prompt, runs, run
        if device == "cuda":
            torch.cuda.empty_cache()


@torch.inference_mode()
def decoded_logits(model: Decoder, ids: Tensor, fused: bool = False) -> Tensor:
    """Logits after the same tokens one at a time: the other path through each product."""
    model.allocate(len(ids), ids.shape[1])
    for i in range(ids.shape[1]):
        logits = (model.fused if fused else model)(ids[:, i : i + 1], torch.tensor([i], device=ids.device))
    return logits.float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="a packed checkpoint of 4 bits")
    parser.add_argument("--random", action="store_true", help="random weights of the shape below instead")
    for name, value in (("hidden", 2304), ("mlp", 5760), ("layers", 40), ("heads", 36), ("vocabulary", 122753)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--group", type=int, default=128, help="of the random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--kernels", nargs="+", choices=list(KERNELS))
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled", "fused"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--context", type=int, default=256, help="tokens of the cache in decoding")
    parser.add_argument("--times", type=int, default=5, help="prompts to take the mean over")
    options = parser.parse_args()
    if options.random == (options.checkpoint is not None):
        parser.error("give a checkpoint or --random")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    said = {"device": name, "torch": torch.__version__}
    writer = csv.DictWriter(sys.stdout, COLUMNS)
    writer.writeheader()

    def write(row: dict[str, Any]) -> None:
        writer.writerow(said | row)
        sys.stdout.flush()

    if options.random:
        said["model"] = "random {hidden}x{mlp}x{layers}, {vocabulary} tokens, groups of {group}".format(**vars(options))
        measure(Random(random_shape(options), options.group, options.device), options, write)
        return
    said["model"] = str(options.checkpoint)
    try:
        config = json.loads((options.checkpoint / "config.json").read_text())
        with opened(options.checkpoint) as held:
            measure(Checkpoint(held, config, options.device), options, write)
    except InputError as error:
        sys.exit(f"ERROR {error}")


if __name__ == "__main__":
    main()
