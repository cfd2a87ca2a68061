"""Greedy tokens of models by one tool, in an environment that has only that tool: generate.py TOOL < job.json

The job: `models` (checkpoint directories or GGUF files), `dtype` (of torch, or auto), `n` and `prompts`. Prints a list
in JSON: for each model its prompts' token ids and the n that follow each, or null where the tool has loaded it but has
no product for it on this machine.
"""

import json
import sys
from itertools import islice
from pathlib import Path

Generated = list[tuple[list[int], list[int]]]


def by_transformers(model: str, dtype: str, n: int, prompts: list[str]) -> Generated:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    loaded.generation_config.eos_token_id, loaded.generation_config.pad_token_id = None, 0
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = loaded.generate(ids, max_new_tokens=n, do_sample=False)[0].tolist()
        found.append((out[:-n], out[-n:]))
    return found


def by_vllm(model: str, dtype: str, n: int, prompts: list[str]) -> Generated | None:
    import torch
    from vllm import LLM, SamplingParams

    # a cache of a given size and no compiling: loading runs no product
    loaded = LLM(model, dtype=dtype, max_model_len=128, enforce_eager=True, kv_cache_memory_bytes=2**26)
    packed = "quantization_config" in json.loads(Path(model, "config.json").read_text())
    if packed and not hasattr(torch.ops._C, "cpu_gemm_wna16"):
        return None
    found = loaded.generate(prompts, SamplingParams(temperature=0, max_tokens=n, ignore_eos=True), use_tqdm=False)
    return [(list(out.prompt_token_ids), list(out.outputs[0].token_ids)) for out in found]


def by_llama_cpp(model: str, dtype: str, n: int, prompts: list[str]) -> Generated:
    from llama_cpp import Llama

    loaded = Llama(model, n_ctx=128, n_threads=2, verbose=False)
    found = []
    for prompt in prompts:
        ids = loaded.tokenize(prompt.encode())  # the file says whether a first token belongs before
        found.append((ids, list(islice(loaded.generate(ids, temp=0.0, repeat_penalty=1.0), n))))
    return found


TOOLS = {"transformers": by_transformers, "vllm": by_vllm, "llama.cpp": by_llama_cpp}

if __name__ == "__main__":
    job = json.load(sys.stdin)
    made = [TOOLS[sys.argv[1]](model, job["dtype"], job["n"], job["prompts"]) for model in job["models"]]
    print(json.dumps(made))
