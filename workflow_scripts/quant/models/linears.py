"""Which linears of a model are quantised: every nn.Linear of its decoder blocks."""

from pathlib import Path

import torch
from torch import nn

from quant.errors import InputError


def skeleton(checkpoint: Path) -> nn.Module:
    """The model of a checkpoint directory with parameters on `meta` and buffers (rotary frequencies) in memory."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint)
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder blocks: the one ModuleList as long as the configuration says there are layers."""
    depth = model.config.get_text_config().num_hidden_layers
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not found:
        raise InputError(
            f"{type(model).__name__}: no list of {depth} decoder blocks was found; use a decoder-only model whose "
            "blocks are a ModuleList"
        )
    return min(found, key=lambda item: item[0].count("."))


def linear_names(block: nn.Module) -> list[str]:
    """Names of the linears within a block."""
    return [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]


def all_linears(model: nn.Module) -> dict[str, int]:
    """Every linear to quantise, by its full name, with the index of its block; embeddings and head are none of them."""
    prefix, blocks = decoder_blocks(model)
    found = {f"{prefix}.{i}.{name}": i for i, block in enumerate(blocks) for name in linear_names(block)}
    if not found:
        raise InputError(
            f"{type(model).__name__}: its decoder blocks hold no nn.Linear (GPT-2's Conv1D is none); use a model "
            "built from nn.Linear"
        )
    return found
