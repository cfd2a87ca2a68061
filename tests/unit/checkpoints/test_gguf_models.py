"""GGUF files of architectures beside Llama: plain transformers has the packed checkpoint's logits of them."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from quant.checkpoints.export import export
from quant.errors import InputError
from quant.evaluation.perplexity import load_model
from tests.unit.model_files import run as convert
from tests.unit.recipe.cases import recast, run

IDS = torch.randint(0, 256, (2, 60), generator=torch.Generator().manual_seed(0))
SYMMETRIC = {"bits": 4, "group_size": 32, "symmetric": True}
OF_256 = {"linears": r"(o|down)_proj$", "format": "q3_k", "bits": 3, "group_size": 16, "symmetric": True}
# heads of 128 channels, together another number than the hidden size; more ids than the tokenizer has
QWEN3 = {
    "model_type": "qwen3", "hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 3,
    "num_key_value_heads": 1, "tie_word_embeddings": True,
}  # fmt: skip
# attention within 16 tokens but for each sixth layer
GEMMA3 = QWEN3 | {"model_type": "gemma3_text", "head_dim": 256, "sliding_window": 16, "num_hidden_layers": 7}
K = {"intermediate_size": 256, "num_attention_heads": 2, "tie_word_embeddings": False}


def made(tokenizer: Path, folder: Path, words: dict[str, Any], **grid: Any) -> Path:
    """A packed checkpoint of a random float16 model, whose norms are no ones; its GGUF file lies beside it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    rest = {"vocab_size": 259, "max_position_embeddings": 128, "initializer_range": 0.2}
    torch.manual_seed(0)
    source = recast(tokenizer, folder / "source", lambda tensors: None)
    config = AutoConfig.for_model(**{"num_hidden_layers": 2} | words, **rest, bos_token_id=None, eos_token_id=None)
    model = AutoModelForCausalLM.from_config(config)
    for name, value in model.named_parameters():
        if "norm" in name:
            value.data.uniform_(0.5, 1.5)
    model.half().save_pretrained(source)
    run(source, folder / "checkpoint", {}, **grid)
    return folder / "checkpoint"


def logits(path: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load_model(path, "cpu", torch.float32)(IDS).logits


@pytest.mark.parametrize(
    ("words", "grid", "types"),
    [
        (QWEN3, SYMMETRIC, "Q4_0"),
        (QWEN3 | {"tie_word_embeddings": False}, SYMMETRIC | {"symmetric": False}, "Q4_1"),
        (QWEN3, SYMMETRIC | {"bits": 8, "group_size": -1}, "Q8_0"),
        (QWEN3 | K, SYMMETRIC | {"format": "iq4_nl", "tensor_types": [OF_256]}, "IQ4_NL+Q3_K"),
        (GEMMA3, SYMMETRIC, "Q4_0"),
        (GEMMA3 | {"tie_word_embeddings": False}, SYMMETRIC | {"bits": 8, "group_size": -1}, "Q8_0"),
    ],
    ids=["Q4_0", "Q4_1", "Q8_0", "IQ4_NL and Q3_K", "gemma3 Q4_0", "gemma3 Q8_0"],
)
def test_qwen3_and_gemma3(
    tiny_checkpoint: Path, tmp_path: Path, words: dict[str, Any], grid: dict[str, Any], types: str
) -> None:
    checkpoint = made(tiny_checkpoint, tmp_path, words, **grid)
    record = export(checkpoint, tmp_path / "gguf", "gguf", "tiny")
    assert record["type"] == types and record["largest_deviation"] <= (0.005 if types == "Q4_1" else 1e-5)
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "gguf/model.gguf").tensors}
    assert {"blk.1.attn_q_norm.weight", "blk.1.attn_k_norm.weight"} < names
    assert ("output.weight" in names) is not words["tie_word_embeddings"]
    found, expected = logits(tmp_path / "gguf/model.gguf"), logits(checkpoint)
    assert (found - expected).norm() < (0.01 if types == "Q4_1" else 1e-5) * expected.norm()


@pytest.mark.parametrize("words", [QWEN3, QWEN3 | {"head_dim": 64}, GEMMA3])
def test_they_are_converted_back(tiny_checkpoint: Path, tmp_path: Path, words: dict[str, Any]) -> None:
    """Qwen3's heads of 64 channels too, of which plain transformers makes 128, and llama.cpp what they are."""
    checkpoint = made(tiny_checkpoint, tmp_path, words, **SYMMETRIC)
    export(checkpoint, tmp_path / "gguf", "gguf", "tiny")
    again, _ = convert({"gguf": {"path": str(tmp_path / "gguf/model.gguf")}}, tmp_path / "results")
    expected = logits(checkpoint)
    assert (logits(again) - expected).norm() < 0.005 * expected.norm(), "weights in float16"


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 4.0}, {"rope_type": "llama3"} | LLAMA3])
def test_scaled_positions_are_not_measured_without_their_scale(
    tiny_checkpoint: Path, tmp_path: Path, rope: dict[str, Any]
) -> None:
    """transformers reads neither words nor factors of a GGUF file."""
    words = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    checkpoint = made(tiny_checkpoint, tmp_path, words | {"rope_parameters": rope | {"rope_theta": 1e4}}, **SYMMETRIC)
    export(checkpoint, tmp_path / "gguf", "gguf", "tiny")
    with pytest.raises(InputError, match=r"model\.gguf: cannot be loaded \(.*passes over .*rotary positions"):
        load_model(tmp_path / "gguf/model.gguf", "cpu", torch.float32)
