"""Runs llm-compressor's GPTQ on one model, by the interpreter of its own environment: imports nothing of quant.

llmcompressor_worker.py JOB.json, with the keys of `Job`; leaves model.safetensors (compressed-tensors' pack-quantized)
and result.json in its folder `out`.
"""

import json
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PreTrainedModel


@dataclass(frozen=True)
class Job:
    """What to do; parallel: sequences in one forward pass. It draws nothing by the seed."""

    model: str
    tokens: str
    out: str
    device: str
    linears: list[str]
    bits: int
    group_size: int
    symmetric: bool
    damp: float
    act_order: str
    seed: int
    parallel: int
    threads: int


def batches(path: str, parallel: int) -> list[dict[str, Tensor]]:
    """The calibration tokens as quant.data.tokens wrote them, joined and cut at the longest sequence's length."""
    stored = load_file(path)
    width = int(stored["lengths"].max())
    ids = stored["ids"].long()
    windows = ids[: len(ids) // width * width].view(-1, width)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in windows.split(parallel)]


class Noting(GPTQModifier):
    """The library's GPTQ, which also notes when each block is done, under the name of its first linear."""

    def on_sequential_epoch_end(self, state: Any, event: Any, modules: list[nn.Module], **kwargs: Any) -> None:
        names = sorted(self._module_names[module] for module in modules if module in self._module_names)
        super().on_sequential_epoch_end(state, event, modules=modules, **kwargs)
        if names:
            DONE.append((names, time.perf_counter()))


DONE: list[tuple[list[str], float]] = []


def others(model: PreTrainedModel, linears: list[str]) -> list[str]:
    """Every linear of the model that is none of these."""
    found = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if missing := sorted(set(linears) - found):
        sys.exit(f"{missing[0]} is no linear layer of the model as transformers builds it")
    return sorted(found - set(linears))


def run(job: Job) -> None:
    torch.set_num_threads(job.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    dtype = torch.float32 if job.device == "cpu" else "auto"
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype, trust_remote_code=False)
    weights = QuantizationArgs(
        num_bits=job.bits, type="int", symmetric=job.symmetric, strategy="group", group_size=job.group_size
    )
    gptq = Noting(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)},
        ignore=others(model, job.linears),
        dampening_frac=job.damp,
        actorder=None if job.act_order == "none" else job.act_order,
    )
    begun = time.perf_counter()
    given = batches(job.tokens, job.parallel)
    oneshot(
        model=model,
        recipe=gptq,
        dataset=DataLoader(given, batch_size=None),
        num_calibration_samples=len(given),
        pipeline="sequential",
    )
    seconds = time.perf_counter() - begun
    model.save_pretrained(job.out, save_compressed=True, max_shard_size="1000GB")
    times = [begun, *(when for _, when in DONE)]
    result = {
        "seconds": seconds,
        "seconds_of": {
            name: (end - start) / len(names) for (names, end), start in zip(DONE, times, strict=False) for name in names
        },
        "versions": {"llmcompressor": metadata.version("llmcompressor")}
        | {f"llmcompressor's {name}": metadata.version(name) for name in ("transformers", "torch")},
    }
    Path(job.out, "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    run(Job(**json.loads(Path(sys.argv[1]).read_text())))
