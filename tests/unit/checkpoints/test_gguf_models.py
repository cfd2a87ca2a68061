"""GGUF files of architectures beside Llama: plain transformers has the packed checkpoint's logits of them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from quant.checkpoints import stored
from quant.checkpoints.export import export
from quant.checkpoints.fitting import without_packing
from quant.errors import InputError
from quant.evaluation.perplexity import load_model
from quant.files.artifacts import read_json, write_plain_json
from quant.files.tensorfile import opened
from quant.methods.exporting import why_no_export, why_unmeasured
from quant.methods.source import Source
from tests.unit.methods.studies import completed
from tests.unit.model_files import run as convert
from tests.unit.recipe.cases import recast, run

IDS = torch.randint(0, 256, (2, 60), generator=torch.Generator().manual_seed(0))
SYMMETRIC = {"bits": 4, "group_size": 32, "symmetric": True}
NL = {"linears": "self_attn", "format": "iq4_nl", "bits": 4, "group_size": 32, "symmetric": True}
OF_256 = {"linears": r"(o|down)_proj$", "format": "q3_k", "bits": 3, "group_size": 16, "symmetric": True}
# heads of 128 channels, together another number than the hidden size; more ids than the tokenizer has
QWEN3: dict[str, Any] = {
    "model_type": "qwen3", "hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 3,
    "num_key_value_heads": 1, "tie_word_embeddings": True,
}  # fmt: skip
# attention within 16 tokens but for each sixth layer
GEMMA3 = QWEN3 | {"model_type": "gemma3_text", "head_dim": 256, "sliding_window": 16, "num_hidden_layers": 7}
# more experts than have one digit, wider than its MLP
QWEN3_MOE = QWEN3 | {
    "model_type": "qwen3_moe", "head_dim": 64, "num_experts": 12, "num_experts_per_tok": 3,
    "moe_intermediate_size": 192, "norm_topk_prob": True, "tie_word_embeddings": False,
}  # fmt: skip
# as many ids as its reader wants, whatever a file says
PHI3 = QWEN3 | {"model_type": "phi3", "vocab_size": 32064, "tie_word_embeddings": False}
WIDE = {"hidden_size": 256, "moe_intermediate_size": 256, "num_attention_heads": 4}
Q3_K = {"format": "q3_k", "bits": 3, "group_size": 16, "symmetric": True}
K = {"intermediate_size": 256, "num_attention_heads": 2, "tie_word_embeddings": False}


def made(tokenizer: Path, folder: Path, words: dict[str, Any], **grid: Any) -> Path:
    """A packed checkpoint of a random float16 model, whose norms are no ones."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"num_hidden_layers": 2, "vocab_size": 259, "max_position_embeddings": 128, "initializer_range": 0.2}
    torch.manual_seed(0)
    source = recast(tokenizer, folder / "source", lambda tensors: None)
    config = AutoConfig.for_model(**shape | words, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = AutoModelForCausalLM.from_config(config)
    for name, value in model.named_parameters():
        if "norm" in name:
            value.data.uniform_(0.5, 1.5)
    model.half().save_pretrained(source)
    run(Source.of(*convert({"directory": str(source)}, folder)), folder / "checkpoint", {}, **grid)
    return folder / "checkpoint"


def logits(path: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load_model(path, "cpu", torch.float32)(IDS).logits


def in_float32(checkpoint: Path) -> Path:
    """Its dense weights, not rounded, as a model that has never been packed; transformers rounds packed experts."""
    target = checkpoint.with_name("float32")
    target.mkdir()
    with stored.dense(checkpoint) as held:
        tensors = {name: held.get(name, dtype=torch.float32).contiguous() for name in held.names}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    write_plain_json(target / "config.json", without_packing(read_json(checkpoint / "config.json")))
    return target


ATTENTION = {f"blk.1.{name}.weight" for name in ("attn_q", "attn_k", "attn_v", "attn_q_norm", "attn_k_norm")}
HELD = {  # some of a file's tensors by its architecture
    "qwen3": ATTENTION,
    "gemma3": ATTENTION,
    "qwen3moe": ATTENTION | {f"blk.1.ffn_{name}.weight" for name in ("gate_inp", "gate_exps", "up_exps", "down_exps")},
    "phi3": {f"blk.1.{name}.weight" for name in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")},
}


@pytest.mark.parametrize(
    ("words", "grid", "types"),
    [
        (QWEN3, SYMMETRIC, "Q4_0"),
        (QWEN3 | {"tie_word_embeddings": False}, SYMMETRIC | {"symmetric": False}, "Q4_1"),
        (QWEN3, SYMMETRIC | {"bits": 8, "group_size": -1}, "Q8_0"),
        (QWEN3 | K, SYMMETRIC | {"format": "iq4_nl", "tensor_types": [OF_256]}, "IQ4_NL+Q3_K"),
        (GEMMA3, SYMMETRIC, "Q4_0"),
        (GEMMA3 | {"tie_word_embeddings": False}, SYMMETRIC | {"bits": 8, "group_size": -1}, "Q8_0"),
        (QWEN3_MOE, SYMMETRIC | {"tensor_types": [NL]}, "IQ4_NL+Q4_0"),
        (QWEN3_MOE | {"tie_word_embeddings": True}, SYMMETRIC | {"bits": 8, "group_size": -1}, "Q8_0"),
        (QWEN3_MOE | WIDE, Q3_K, "Q3_K"),
        (PHI3, SYMMETRIC, "Q4_0"),
    ],
    ids=[
        "Q4_0", "Q4_1", "Q8_0", "IQ4_NL and Q3_K", "gemma3 Q4_0", "gemma3 Q8_0", "qwen3_moe Q4_0 and IQ4_NL",
        "qwen3_moe Q8_0", "qwen3_moe Q3_K", "phi3 Q4_0",
    ],
)  # fmt: skip
def test_plain_transformers_reads_the_checkpoints_model(
    tiny_checkpoint: Path, tmp_path: Path, words: dict[str, Any], grid: dict[str, Any], types: str
) -> None:
    checkpoint = made(tiny_checkpoint, tmp_path, words, **grid)
    record = export(checkpoint, tmp_path / "gguf", "gguf", "tiny")
    assert record["type"] == types and record["largest_deviation"] <= (0.005 if types == "Q4_1" else 1e-5)
    reader = gguf.GGUFReader(tmp_path / "gguf/model.gguf")
    names = {tensor.name for tensor in reader.tensors}
    assert HELD[reader.fields["general.architecture"].contents()] < names
    assert ("output.weight" in names) is not words["tie_word_embeddings"]
    found, expected = logits(tmp_path / "gguf/model.gguf"), logits(in_float32(checkpoint))
    assert (found - expected).norm() < (0.01 if types == "Q4_1" else 1e-5) * expected.norm()


@pytest.mark.parametrize("grid", [SYMMETRIC, SYMMETRIC | {"bits": 8, "group_size": -1}, Q3_K], ids=["4", "8", "Q3_K"])
def test_experts_are_one_tensor_in_the_order_of_their_numbers(
    tiny_checkpoint: Path, tmp_path: Path, grid: dict[str, Any]
) -> None:
    """To the bit; the router that chooses among them in float32."""
    checkpoint = made(tiny_checkpoint, tmp_path, QWEN3_MOE | WIDE, **grid)
    record = export(checkpoint, tmp_path / "gguf", "gguf", "tiny")
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "gguf/model.gguf").tensors}
    linear_bytes = 0
    with stored.opened(checkpoint) as file:
        for layer in (0, 1):
            router = held[f"blk.{layer}.ffn_gate_inp.weight"]
            assert router.tensor_type.name == "F32"
            expected = file.file.get(f"model.layers.{layer}.mlp.gate.weight", dtype=torch.float32)
            np.testing.assert_array_equal(router.data, expected.numpy())
            for part in ("gate", "up", "down"):
                tensor = held[f"blk.{layer}.ffn_{part}_exps.weight"]
                linear_bytes += tensor.n_bytes
                values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
                assert len(values) == 12
                for i, value in enumerate(values):
                    weight = file.weight(f"model.layers.{layer}.mlp.experts.{i}.{part}_proj")
                    np.testing.assert_array_equal(value, weight.numpy())
        n = sum(int(np.prod(file.shape(name))) for name in file.packed)
    linear_bytes += sum(
        held[f"blk.{i}.attn_{part}.weight"].n_bytes for i in (0, 1) for part in ("q", "k", "v", "output")
    )
    assert record["bits_per_weight"] == 8 * linear_bytes / n


@pytest.mark.parametrize("words", [QWEN3, QWEN3 | {"head_dim": 64}, GEMMA3, QWEN3_MOE, PHI3])
def test_they_are_converted_back(tiny_checkpoint: Path, tmp_path: Path, words: dict[str, Any]) -> None:
    """Qwen3's heads of 64 channels too, of which plain transformers makes 128, and llama.cpp what they are."""
    checkpoint = made(tiny_checkpoint, tmp_path / "made", words, **SYMMETRIC)
    export(checkpoint, tmp_path / "gguf", "gguf", "tiny")
    again, _ = convert({"gguf": {"path": str(tmp_path / "gguf/model.gguf")}}, tmp_path / "results")
    expected = logits(checkpoint)
    assert (logits(again) - expected).norm() < 0.005 * expected.norm(), "weights in float16"


PARTIAL = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (QWEN3_MOE, None),
        (PHI3, None),
        (PHI3 | PARTIAL, "takes a head's rotary channels 32 for phi3, whatever a GGUF file says, and it has 16"),
        (PHI3 | {"vocab_size": 259}, "takes pad_token_id 32000 for phi3, whatever a GGUF file says, and it has 259"),
    ],
    ids=["qwen3_moe", "phi3", "some channels", "few ids"],
)
def test_what_transformers_reads_otherwise_is_not_measured(
    tiny_checkpoint: Path, tmp_path: Path, words: dict[str, Any], reason: str | None
) -> None:
    """llama.cpp reads all of them (tests/tools), so that they are exported."""
    checkpoint = made(tiny_checkpoint, tmp_path, words, **SYMMETRIC)
    original, (entry,) = tmp_path / "original/checkpoint", completed(a=SYMMETRIC).values()
    with opened(original / "model.safetensors") as file:
        found, record = why_unmeasured(original, file.layout()), read_json(tmp_path / "original/convert.json")
        assert why_no_export("gguf", entry, original, record, file.layout()) is None
    assert found is None if reason is None else reason in str(found)
    export(checkpoint, tmp_path / "gguf", "gguf", "tiny")


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
