"""MiniCPM-1B and -2B, whose published code is never run, as Granite: the same equations, four multipliers by other
names."""

import math
from typing import Any

from quant.errors import InputError, one_line
from quant.files.given import AGAIN

OTHER = ("num_experts", "sparse_config", "q_lora_rank")  # variants that compute something else
KEPT = (
    "attention_bias", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "hidden_act", "hidden_size",
    "initializer_range", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "quantization_config", "rms_norm_eps", "rope_scaling", "rope_theta", "dtype", "torch_dtype",
    "use_cache", "vocab_size",
)  # fmt: skip


def granite_config(minicpm: dict[str, Any], where: str) -> dict[str, Any]:
    """MiniCPM's config.json as Granite's."""
    other = [key for key in OTHER if minicpm.get(key)]
    if other:
        raise InputError(
            f"{where}: this MiniCPM has {other[0]}, which has no native form; give a dense MiniCPM-1B or -2B"
        )
    try:
        heads, width, depth = (minicpm[key] for key in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
        return {key: minicpm[key] for key in KEPT if key in minicpm} | {
            "architectures": ["GraniteForCausalLM"],
            "model_type": "granite",
            "embedding_multiplier": float(minicpm["scale_emb"]),
            "residual_multiplier": minicpm["scale_depth"] / math.sqrt(depth),
            "logits_scaling": width / minicpm["dim_model_base"],
            "attention_multiplier": 1 / math.sqrt(width // heads),
            "tie_word_embeddings": minicpm.get("tie_word_embeddings", True),
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"{where}: its config.json does not describe a MiniCPM ({type(error).__name__}: {one_line(error)}); {AGAIN}"
        ) from None
