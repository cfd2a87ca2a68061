"""What a GGUF file says of its model beside the tensors, held against what transformers' reader makes of it.

The reader takes some keys of each architecture and passes over the others: those that a config has a word for are set
here, and any other that would make another model is refused by name.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quant.errors import InputError

BIASES = {  # config.json's word for tensors that llama.cpp takes wherever the file has them
    "attention_bias": r"blk\.\d+\.attn_(q|k|v|output)\.bias",
    "mlp_bias": r"blk\.\d+\.ffn_(gate|up|down)\.bias",
}
WORDS = {  # keys that transformers' reader takes of some architectures only, and config.json's words for them
    "attention.key_length": "head_dim",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "final_logit_softcapping": "final_logit_softcapping",
}
READ_AS = {"gemma3": "gemma3_text", "qwen3moe": "qwen3_moe"}  # the model_type of an architecture, where it is another
NEUTRAL: dict[str, tuple[Any, ...]] = {  # values that change nothing, beside 0
    "attention.causal": (True,),
    "attention.scale": (),
    "embedding_scale": (1,),
    "logit_scale": (1,),
    "residual_scale": (1,),
    "rope.scale_linear": (1,),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.factor": (1,),
    "rope.scaling.type": ("none",),
}
# held by the tensors' shapes, or of no weight in a forward pass; a window is held against the context (check_taken)
APART = {
    "attention.sliding_window", "context_length", "expert_feed_forward_length", "expert_shared_feed_forward_length",
    "feed_forward_length", "pooling_type", "rope.scaling.finetuned", "rope.scaling.original_context_length",
    "tensor_data_layout",
}  # fmt: skip


def head_size(config: Any) -> int | None:
    """Channels of an attention head."""
    heads = getattr(config, "num_attention_heads", None)
    return getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else None)


def turned(config: Any) -> int | None:
    """Channels of a head that rotary positions turn."""
    size = getattr(config, "global_head_dim", None) or head_size(config)
    share = rope(config).get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    return None if size is None else int(size * share)


def rope(config: Any, layers: str = "full_attention") -> dict[str, Any]:
    """Rotary positions of a kind of layers."""
    given = getattr(config, "rope_parameters", None) or {}
    return given.get(layers, {}) if any(isinstance(value, dict) for value in given.values()) else given


EXPECTED: dict[str, Callable[[Any], Any]] = {  # what a key must say where the reader does not take it
    "attention.head_count_kv": lambda config: (
        getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    ),
    "attention.key_length": head_size,
    "attention.value_length": head_size,
    "rope.dimension_count": turned,
    "rope.freq_base": lambda config: rope(config).get("rope_theta"),
    "rope.freq_base_swa": lambda config: rope(config, "sliding_attention").get("rope_theta"),
    "attention.sliding_window_pattern": lambda config: getattr(config, "sliding_window_pattern", None),
    "use_parallel_residual": lambda config: getattr(config, "use_parallel_residual", None),
}


def values(reader: Any) -> dict[str, Any]:
    """The file's own hyperparameters, without the architecture before them."""
    prefix = reader.fields["general.architecture"].contents() + "."
    return {
        key.removeprefix(prefix): field.contents() for key, field in reader.fields.items() if key.startswith(prefix)
    }


def scales_positions(reader: Any) -> bool:
    """Whether a file scales rotary positions, which transformers' reader passes over; the factors of llama3's scaling
    are a tensor."""
    kinds = [str(field.contents()) for key, field in reader.fields.items() if key.endswith(".rope.scaling.type")]
    factors = any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors)
    return factors or any(kind != "none" for kind in kinds)


def model_type_read(kind: str) -> str:
    """What transformers' reader makes of a file of an architecture."""
    return READ_AS.get(kind, kind)


def config_read(kind: str, config: dict[str, Any]) -> Any:
    """The configuration that the reader makes of a file of an architecture: its own values where it takes none of the
    file. config: the checkpoint's, as transformers has it."""
    from transformers import AutoConfig
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    model_type = model_type_read(kind)
    taken: Any = GGUF_CONFIG_MAPPING[model_type.removesuffix("_text")]
    return AutoConfig.for_model(model_type, **{word: config[word] for word in taken.values() if word in config})


def complete(config: Any, reader: Any) -> bool:
    """Sets what a config of transformers' reader has words for and was not given; whether biases are among it."""
    held = values(reader)
    for key, word in WORDS.items():
        if key in held and hasattr(config, word):
            setattr(config, word, held[key])
    lacking = [
        word
        for word, names in BIASES.items()
        if getattr(config, word, None) is False and any(re.fullmatch(names, tensor.name) for tensor in reader.tensors)
    ]
    for word in lacking:
        setattr(config, word, True)
    return bool(lacking)


def refuse_unread(path: Path, reader: Any, config: Any, instead: str) -> None:
    """Refuses a file that says of its model what the config does not."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    taken: Any = GGUF_CONFIG_MAPPING.get(config.model_type.removesuffix("_text"), {})
    for key, value in values(reader).items():
        expected = None
        if key in EXPECTED and taken.get(key) in (None, "head_dim"):
            expected = EXPECTED[key](config)
            known = value == expected
        else:
            known = taken.get(key) is not None or key in APART or hasattr(config, WORDS.get(key, "?"))
        if not known and value and value not in NEUTRAL.get(key, ()):
            raise InputError(
                f"{path}: its {key} is {value}, for which {type(config).__name__} as transformers reads it has "
                f"{'no word' if expected is None else expected}; {instead}"
            )
