"""Small random models of several architectures, what their linears read, and lengths of ragged sequences."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.conftest import perturb

COMMON = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FEWER = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", COMMON),
    "granite": (
        "GraniteConfig",
        COMMON
        | {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "attention_multiplier": 0.3,
        },
    ),
    "qwen2": ("Qwen2Config", COMMON | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", COMMON | {"head_dim": 8}),
    "mistral": ("MistralConfig", COMMON | {"sliding_window": 4}),
    "phi3": ("Phi3Config", COMMON),
    "gemma2": ("Gemma2Config", COMMON | {"head_dim": 8, "sliding_window": 4}),
    "gpt_neox": ("GPTNeoXConfig", FEWER | {"use_parallel_residual": True}),
    "gpt_neox_sequential": ("GPTNeoXConfig", FEWER | {"use_parallel_residual": False}),
    "opt": ("OPTConfig", FEWER | {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2}),
    "opt_350m": ("OPTConfig", FEWER | {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
}
TUPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon": ("FalconConfig", FEWER),
    "gptj": ("GPTJConfig", {"vocab_size": 256, "n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4}),
}
LENGTHS = (9, 5, 12, 7, 12, 3)  # longer than the sliding windows above


def saved(config: str, changes: dict[str, Any], folder: Path) -> nn.Module:
    """A random model of that architecture, written to folder and read back by plain transformers."""
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**changes)).float()
    perturb(model, 1)
    model.save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def inputs_of(model: nn.Module, names: list[str], sequences: list[Tensor]) -> dict[str, np.ndarray]:
    """What each linear reads of all tokens [n, in], the model run whole."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: found[name].append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for name in names
    ]
    with torch.inference_mode():
        for sequence in sequences:
            model(sequence[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts).double().numpy() for name, parts in found.items()}


def changed(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Weights that a quantisation might give."""
    generator = torch.Generator().manual_seed(3)
    weights = {f"{name}.weight": model.get_submodule(name).weight for name in names}
    return {key: w + 0.1 * w.std() * torch.randn(w.shape, generator=generator) for key, w in weights.items()}


FIRST_READER = {
    "self_attn.q_proj": "self_attn.q_proj",
    "self_attn.k_proj": "self_attn.q_proj",
    "self_attn.v_proj": "self_attn.q_proj",
    "self_attn.o_proj": "self_attn.o_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.gate_proj",
    "mlp.down_proj": "mlp.down_proj",
}
