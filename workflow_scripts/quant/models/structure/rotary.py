"""Rotary positions whose frequencies depend on the longest sequence of a batch (longrope), or on the longest so far
(dynamic): what a sequence gives must not depend on its company."""

from typing import Any

from torch import nn

LENGTHS = ("dynamic", "longrope")


def by_length(config: Any) -> bool:
    """Whether a model's frequencies are chosen by length, so that only sequences of one length may share a batch."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    each = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return any(kind in str(one.get("rope_type", "")) for one in each for kind in LENGTHS)


def forget(model: nn.Module) -> None:
    """Sets the frequencies of every rotary embedding back to those of a short sequence, as at the start."""
    for module in model.modules():
        for name, original in [*vars(module).items(), *module.named_buffers(recurse=False)]:
            if name.endswith("original_inv_freq"):
                prefix = name.removesuffix("original_inv_freq")
                current = getattr(module, f"{prefix}inv_freq")
                module.register_buffer(f"{prefix}inv_freq", original.to(current.device), persistent=False)
                if hasattr(module, f"{prefix}max_seq_len_cached"):
                    setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
