"""A checkpoint as plain transformers loads it."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(checkpoint: Path, device: str, dtype: torch.dtype) -> "PreTrainedModel":
    """The causal language model, ready to run."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    plain: nn.Module = model  # whose `to` has a type
    plain.to(device)
    return model.eval()
