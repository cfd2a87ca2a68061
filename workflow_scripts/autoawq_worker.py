"""Runs the AutoAWQ library on one model, by the interpreter of its own environment: imports nothing of quant.

autoawq_worker.py JOB.json, with the keys of `Job`; leaves model.safetensors (packed, GEMM layout), scales.safetensors
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
from awq import AutoAWQForCausalLM
from awq.models import auto, base
from awq.models.llama import LlamaAWQForCausalLM
from awq.quantize.quantizer import AwqQuantizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Job:
    """What to do; parallel: sequences in one forward pass. Bits and linears are the library's own; it draws nothing."""

    model: str
    tokens: str
    out: str
    device: str
    linears: list[str]
    bits: int
    group_size: int
    clip: bool
    seed: int
    parallel: int
    threads: int


class GraniteAWQ(LlamaAWQForCausalLM):
    """Granite, which AutoAWQ 0.2.9 has not: its blocks hold Llama's linears and norms under Llama's names, and its
    multipliers act on embeddings, attention scores, residuals and logits, so that Llama's groups fold as they do there.
    """

    layer_type = "GraniteDecoderLayer"


class Noting(AwqQuantizer):
    """The library's quantiser, which also keeps the scales that it folds, by linear, and the seconds of each block.

    `{linear}.input` [in]: what the columns were multiplied with; `{linear}.output` [out]: the rows.
    """

    def __init__(self, awq_model: Any, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        self.scales: dict[str, Tensor] = {}
        self.block_seconds: dict[str, float] = {}
        super().__init__(awq_model, model, *args, **kwargs)
        self.names = {id(block): name for name, block in model.named_modules()}
        self.begun = time.perf_counter()

    def _search_best_scale(self, module: nn.Module, prev_op: nn.Module, layers: list[nn.Linear], **rest: Any) -> tuple:
        source, linears, scale = found = super()._search_best_scale(module, prev_op=prev_op, layers=layers, **rest)
        block = self.names[id(module)]
        kept = scale.detach().float().cpu().clone()
        for linear in linears:
            self.scales[f"{block}.{linear}.input"] = kept.clone()
        if isinstance(prev_op, nn.Linear):  # its last rows, as many as the scale has entries
            rows = torch.ones(prev_op.out_features)
            rows[-len(kept) :] = 1 / kept
            self.scales[f"{block}.{source}.output"] = rows
        return found

    def _compute_best_scale(
        self, x: Tensor, w_mean: Tensor, x_mean: Tensor, module2inspect: nn.Module, *rest: Any
    ) -> Any:
        """Without copies, the search spoils a model on a CPU: it remembers the weights by state_dict and .cpu(), which
        copies them from a GPU only, scales them in place, and puts back what it remembers."""
        hook = module2inspect.register_state_dict_post_hook(copy_entries)
        try:
            return super()._compute_best_scale(x, w_mean, x_mean, module2inspect, *rest)
        finally:
            hook.remove()

    def _apply_quant(self, module: nn.Module, named_linears: dict[str, nn.Linear]) -> None:
        super()._apply_quant(module, named_linears)
        now = time.perf_counter()
        self.block_seconds[self.names[id(module)]], self.begun = now - self.begun, now


def copy_entries(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    """A state_dict hook: copies in place of the parameters' own memory."""
    for name, value in state.items():
        state[name] = value.clone() if isinstance(value, Tensor) else value


def sequences(path: str) -> list[list[int]]:
    """The calibration tokens as quant.data.tokens wrote them."""
    stored = load_file(path)
    return [part.tolist() for part in stored["ids"].split(stored["lengths"].tolist())]


def run(job: Job) -> None:
    torch.set_num_threads(job.threads)
    auto.AWQ_CAUSAL_LM_MODEL_MAP["granite"] = GraniteAWQ
    base.TRANSFORMERS_AUTO_MAPPING_DICT["granite"] = "AutoModelForCausalLM"
    calibration = sequences(job.tokens)
    # float16 is the library's own choice; on a CPU it is slow, so the search runs in float32 there
    dtype = torch.float16 if job.device == "cuda" else torch.float32
    model = AutoAWQForCausalLM.from_pretrained(
        job.model, trust_remote_code=False, safetensors=True, torch_dtype=dtype, device_map="cpu"
    )
    begun = time.perf_counter()
    model.quantize(
        tokenizer=None,  # the calibration is token ids already
        quant_config={"zero_point": True, "q_group_size": job.group_size, "w_bit": job.bits, "version": "GEMM"},
        calib_data=calibration,
        max_calib_samples=len(calibration),
        # it joins the sequences and cuts them at this length: where all have it, into themselves
        max_calib_seq_len=max(map(len, calibration)),
        n_parallel_calib_samples=job.parallel,
        apply_clip=job.clip,
        quantizer_cls=Noting,
    )
    seconds = time.perf_counter() - begun
    model.model.half()  # as the library stores it, whatever it searched in
    model.save_quantized(job.out, safetensors=True, shard_size="1000GB")
    save_file(model.quantizer.scales, Path(job.out, "scales.safetensors"))
    result = {
        "seconds": seconds,
        "seconds_of": model.quantizer.block_seconds,
        "versions": {"autoawq": metadata.version("autoawq")}
        | {f"autoawq's {name}": metadata.version(name) for name in ("transformers", "torch")},
    }
    Path(job.out, "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    run(Job(**json.loads(Path(sys.argv[1]).read_text())))
