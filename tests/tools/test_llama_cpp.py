"""GGUF exports in llama.cpp, whose products round activations to 8 bits in blocks of 32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quant.errors import InputError
from quant.evaluation.perplexity import load_model
from quant.methods.source import Source
from tests.tools.conftest import N_NEW, expected, exported, generate
from tests.unit.model_files import run as convert
from tests.unit.recipe.cases import recast, run

NEAR = 0.15  # standard deviations of the logits: at most 0.06 was seen; a wrong token lies about 3 below, or more


def shortfall(checkpoint: Path, generated: list[tuple[list[int], list[int]]]) -> float:
    """How far at most a new token's logit lies below the best of the checkpoint in float32, in standard deviations."""
    model = load_model(checkpoint, "cpu", torch.float32)
    worst = 0.0
    for prompt, new in generated:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(new)[:, None])[:, 0]
        worst = max(worst, ((logits.amax(1) - chosen) / logits.std(1)).max().item())
    return worst


QWEN3 = {"model_type": "qwen3", "tie_word_embeddings": True}
GEMMA3 = {"model_type": "gemma3_text", "sliding_window": 4, "num_hidden_layers": 7}
QWEN3_MOE = {
    "model_type": "qwen3_moe", "head_dim": 64, "num_experts": 12, "num_experts_per_tok": 3,
    "moe_intermediate_size": 96, "norm_topk_prob": True,
}  # fmt: skip
PHI3 = {"model_type": "phi3", "pad_token_id": None}
PARTIAL = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}
IQ4_NL = {"format": "iq4_nl", "bits": 4, "group_size": 32, "symmetric": True}
Q3_K = {"format": "q3_k", "bits": 3, "group_size": 16, "symmetric": True}
OWN = IQ4_NL | {"tensor_types": [{"linears": "down_proj"} | Q3_K]}
Q4_0 = {"bits": 4, "group_size": 32, "symmetric": True}


@pytest.mark.parametrize(
    ("words", "grid"),
    [
        ({"model_type": "llama"}, OWN),
        (QWEN3, OWN),
        (QWEN3 | {"head_dim": 64, "tie_word_embeddings": False}, OWN),
        (GEMMA3, OWN),
        (QWEN3_MOE, Q4_0 | {"tensor_types": [{"linears": "self_attn"} | IQ4_NL]}),
        (QWEN3_MOE | {"hidden_size": 256, "moe_intermediate_size": 256}, Q3_K),
        (PHI3, OWN),
        (PHI3 | PARTIAL, Q4_0 | {"bits": 8}),
    ],
    ids=[
        "llama", "qwen3", "qwen3 with heads of 64", "gemma3", "qwen3_moe", "qwen3_moe in Q3_K", "phi3",
        "phi3 that turns half of a head",
    ],
)  # fmt: skip
def test_architectures(
    python: Callable[[str], Path], tiny_checkpoint: Path, tmp_path: Path, words: dict[str, Any], grid: dict[str, Any]
) -> None:
    """In its own formats, Q3_K where inputs are a multiple of 256; experts in those that are packed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    alone = python("llama.cpp")
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    rest = {"num_hidden_layers": 2, "vocab_size": 256, "max_position_embeddings": 128, "initializer_range": 0.2}
    torch.manual_seed(0)
    source = recast(tiny_checkpoint, tmp_path / "source", lambda tensors: None)
    config = AutoConfig.for_model(**shape | rest | words, bos_token_id=None, eos_token_id=None)
    AutoModelForCausalLM.from_config(config).half().save_pretrained(source)
    run(Source.of(*convert({"directory": str(source)}, tmp_path)), tmp_path / "checkpoint", {}, **grid)
    model = exported(tmp_path / "checkpoint", tmp_path, "gguf") / "model.gguf"
    found = generate("llama.cpp", alone, [model], "auto")[0]
    assert [prompt for prompt, _ in found] == [prompt for prompt, _ in expected(tmp_path / "checkpoint", "float32")]
    assert shortfall(tmp_path / "checkpoint", found) < NEAR


def test_gguf(name: str, python: Callable[[str], Path], checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The prompts' token ids are transformers', each new token is its best or so near that rounding turns it."""
    alone = python("llama.cpp")
    try:
        model = exported(checkpoints[name], tmp_path, "gguf") / "model.gguf"
    except InputError as error:
        pytest.skip(str(error))
    found = generate("llama.cpp", alone, [model], "auto")[0]
    by_transformers = expected(checkpoints[name], "float32")
    short = shortfall(checkpoints[name], found)
    same = sum(a == b for (_, a), (_, b) in zip(found, by_transformers, strict=True))
    print(f"{name}: {same} of {len(found)} prompts with the same {N_NEW} tokens; at most {short:.3f} below the best")
    assert [prompt for prompt, _ in found] == [prompt for prompt, _ in by_transformers]
    assert short < NEAR
