"""Tiny models as GGUF files."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests import tiny


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of rotary channels; of a weight or a bias."""
    shape = (heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape))


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
} | {f"mlp.experts.{leaf}_proj": f"ffn_{leaf}_exps" for leaf in ("gate", "up", "down")} | {
    f"mlp.shared_expert.{leaf}_proj": f"ffn_{leaf}_shexp" for leaf in ("gate", "up", "down")
}  # fmt: skip


def with_experts_stacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One tensor for a layer's experts, as llama.cpp has them."""
    found: dict[str, list[Tensor]] = {}
    for name, value in tensors.items():  # in the order of their numbers, of which there are fewer than ten
        found.setdefault(re.sub(r"experts\.\d\.", "experts.", name), []).append(value)
    return {name: torch.stack(each) if ".experts." in name else each[0] for name, each in found.items()}


def write_gguf(
    source: Path,
    path: Path,
    leave_out: str = "?",
    kind: Any = gguf.GGMLQuantizationType.F32,
    extra: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
    architecture: str = "llama",
) -> Path:
    """A tiny model with a byte-level tokenizer, as llama.cpp's converter lays it out."""
    from tokenizers import pre_tokenizers

    config, writer = tiny.read(source / "config.json"), gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*sorted(pre_tokenizers.ByteLevel.alphabet())[:254], "ab", "cd"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 256)
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    extra(writer)
    for name, value in with_experts_stacked(load_file(source / "model.safetensors")).items():
        array = value.numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            array = permuted(array, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        block = re.match(r"model\.layers\.(\d+)\.(.*)\.(weight|bias)", name)
        known = GGUF_NAMES[block[2] if block else name.removesuffix(".weight")]
        stored = f"blk.{block[1]}.{known}.{block[3]}" if block else f"{known}.weight"
        if leave_out not in stored:
            array = array.reshape(-1) if known == "ffn_gate_inp_shexp" else array
            stored_as = kind if array.ndim > 1 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(stored, gguf.quantize(array, stored_as), raw_dtype=stored_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
