"""AutoRound's AutoScheme, by its own environment's interpreter: autoscheme_worker.py JOB.json, with the keys of Job.

Writes OUT/widths.json, each linear's bits, as soon as they are chosen; then, tuned by AutoRound with them, the
dequantised weights, OUT/weights.safetensors, and OUT/result.json.
"""

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

os.environ["AR_ALLOW_W8_ASYM"] = "1"  # 8 bits have zero points like the others

import torch
from auto_round import AutoRound, AutoScheme
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class Job:
    """What to do. text: a .jsonl file of n calibration texts, each cut to `width` tokens; average_bits: of a
    weight as the library counts them, steps and zeros among them."""

    model: str
    text: str
    out: str
    device: str
    linears: list[str]
    average_bits: float
    options: list[int]
    group_size: int
    iterations: int
    batch: int
    n: int
    width: int
    seed: int


def run(job: Job) -> None:
    begun, out = time.perf_counter(), Path(job.out)
    on_cpu = job.device == "cpu"
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32 if on_cpu else "auto")
    autoround = AutoRound(
        model,
        tokenizer=AutoTokenizer.from_pretrained(job.model),
        scheme=AutoScheme(avg_bits=job.average_bits, options=[f"W{bits}A16" for bits in job.options]),
        group_size=job.group_size,
        sym=False,
        iters=job.iterations,
        batch_size=job.batch,
        dataset=job.text,
        seqlen=job.width,
        nsamples=job.n,
        seed=job.seed,
        device_map=job.device,
        amp=not on_cpu,
        enable_torch_compile=False if on_cpu or shutil.which("cc") is None else None,
    )
    autoround.post_init()
    chosen = {name: autoround.layer_config[name] for name in job.linears}
    widths = {name: {key: each[key] for key in ("bits", "group_size", "sym")} for name, each in chosen.items()}
    said = {"widths": widths, "seconds": time.perf_counter() - begun}
    Path(out, "widths.part").write_text(json.dumps(said))
    Path(out, "widths.part").rename(out / "widths.json")
    model, _ = autoround.quantize()
    seconds = time.perf_counter() - begun
    weights = {name: model.get_submodule(name).weight.detach().float().cpu().contiguous() for name in job.linears}
    save_file(weights, out / "weights.safetensors")
    versions = {name: metadata.version(name) for name in ("auto-round", "transformers", "torch")}
    Path(out, "result.json").write_text(json.dumps({"seconds": seconds, "versions": versions}))


if __name__ == "__main__":
    run(Job(**json.loads(Path(sys.argv[1]).read_text())))
