"""GGUF exports in llama.cpp, whose products round activations to 8 bits in blocks of 32."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quant.errors import InputError
from quant.evaluation.perplexity import load_model
from tests.tools.conftest import N_NEW, expected, exported, generate

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
