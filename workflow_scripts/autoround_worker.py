"""Runs the AutoRound library on one model, by the interpreter of its own environment: imports nothing of quant.

autoround_worker.py JOB.json, with the keys of `Job`; leaves model.safetensors (packed, in a layout of the library's
choice, which result.json names) and result.json in its folder `out`.
"""

import json
import shutil
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from auto_round import AutoRound
from auto_round.algorithms.quantization.sign_round.quantizer import SignRoundQuantizer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


@dataclass(frozen=True)
class Job:
    """What to do. rate 0: the library's own, 1/iterations; parallel: sequences in one forward pass, where memory does
    not hold a batch."""

    model: str
    tokens: str
    out: str
    device: str
    linears: list[str]
    bits: int
    group_size: int
    symmetric: bool
    iterations: int
    rate: float
    batch: int
    extension: bool
    seed: int
    parallel: int
    threads: int


def windows(path: str) -> list[Tensor]:
    """The calibration tokens as quant.data.tokens wrote them, joined and cut at the longest sequence's length,
    [1, length] each: the library passes over shorter sequences."""
    stored = load_file(path)
    width = int(stored["lengths"].max())
    ids = stored["ids"].long()
    return list(ids[: len(ids) // width * width].view(-1, 1, width))


def samples(sequences: list[Tensor]) -> list[dict[str, Tensor]]:
    """As the library takes token ids; without a mask it would take a repeated last token for padding."""
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in sequences]


def left_alone(model: PreTrainedModel, linears: list[str]) -> dict[str, dict[str, int]]:
    """Every linear of the model that is none of these, as the library is told to leave it in 16 bit."""
    found = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if missing := sorted(set(linears) - found):
        sys.exit(f"{missing[0]} is no linear layer of the model as transformers builds it")
    return {name: {"bits": 16, "data_type": "float"} for name in sorted(found - set(linears))}


def timed(seconds: dict[str, float]) -> None:
    """Notes the seconds of each block from now on."""
    tune = SignRoundQuantizer.quantize_block

    def quantize_block(self: Any, block: nn.Module, *rest: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        found = tune(self, block, *rest, **named)
        (context,) = (each for each in (*rest, *named.values()) if hasattr(each, "block_name"))
        seconds[context.block_name] = time.perf_counter() - begun
        return found

    SignRoundQuantizer.quantize_block = quantize_block


def run(job: Job) -> None:
    torch.set_num_threads(job.threads)
    on_cpu = job.device == "cpu"
    sequences = windows(job.tokens)
    model = AutoModelForCausalLM.from_pretrained(
        job.model, dtype=torch.float32 if on_cpu else "auto", trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(job.model, trust_remote_code=False)
    batch = min(job.batch, len(sequences))
    at_once = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= job.parallel)
    block_seconds: dict[str, float] = {}
    timed(block_seconds)
    begun = time.perf_counter()
    autoround = AutoRound(
        model,
        tokenizer=tokenizer,
        bits=job.bits,
        group_size=job.group_size,
        sym=job.symmetric,
        layer_config=left_alone(model, job.linears),
        iters=job.iterations,
        lr=job.rate or None,
        batch_size=at_once,
        gradient_accumulate_steps=batch // at_once,
        enable_alg_ext=job.extension,
        dataset=samples(sequences),
        seqlen=sequences[0].shape[1],
        nsamples=len(sequences),
        seed=job.seed,
        device_map=job.device,
        # on a CPU in float32, and not compiled, which takes longer there than it saves
        amp=not on_cpu,
        enable_torch_compile=False if on_cpu or shutil.which("cc") is None else None,
        enable_deterministic_algorithms=True,
        trust_remote_code=False,
    )
    autoround.quantize_and_save(job.out, format="auto_round")
    seconds = time.perf_counter() - begun
    (config,) = Path(job.out).rglob("quantization_config.json")
    weights = sorted(config.parent.glob("*.safetensors"))
    if len(weights) != 1:
        sys.exit(f"it wrote {len(weights)} files of weights, where one was expected")
    weights[0].rename(Path(job.out, "model.safetensors"))
    result = {
        "seconds": seconds,
        "seconds_of": block_seconds,
        "layout": json.loads(config.read_text())["packing_format"],
        "versions": {"autoround": metadata.version("auto-round")}
        | {f"autoround's {name}": metadata.version(name) for name in ("transformers", "torch")},
    }
    Path(job.out, "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    run(Job(**json.loads(Path(sys.argv[1]).read_text())))
