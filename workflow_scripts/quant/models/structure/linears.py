"""Which linears of a model are quantised: every nn.Linear of its decoder blocks, experts' among them, but for those
that choose experts."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from quant.errors import InputError
from quant.models.structure.experts import routing, unroll
from quant.records.model import Embeddings
from quant.runtime.importing import uncollected

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def skeleton(checkpoint: Path) -> "PreTrainedModel":
    """The model of a checkpoint directory with parameters on `meta` and buffers (rotary frequencies) in memory."""
    with uncollected():
        from accelerate import init_empty_weights
        from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return unroll(model)


def decoder_blocks(model: "PreTrainedModel") -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder blocks: the one ModuleList as long as the configuration says there are layers, by
    num_hidden_layers or, where that counts a block's halves (LongCat), by num_layers."""
    config = model.config.get_text_config(decoder=True)
    depth, *others = [getattr(config, key, None) for key in ("num_hidden_layers", "num_layers")]
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    found = next((fit for n in (depth, *others) if (fit := [each for each in lists if len(each[1]) == n])), None)
    if found is None:
        raise InputError(
            f"{type(model).__name__}: no list of {depth or 'its'} decoder blocks was found; use a decoder-only model "
            "whose blocks are a ModuleList"
        )
    return min(found, key=lambda item: item[0].count("."))


def routers(block: nn.Module) -> set[str]:
    """Names of a block's linears that choose experts or weigh them: as many outputs as experts, or one."""
    sizes = {1} | {module.num_experts for module in routing(block).values()}
    if len(sizes) == 1:
        return set()
    within = tuple(f"{name}." for name in routing(block))
    return {
        name
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and module.out_features in sizes and not name.startswith(within)
        and not name.rpartition(".")[2].endswith("_proj")
    }  # fmt: skip


def linear_names(block: nn.Module) -> list[str]:
    """Names of the linears within a block that are quantised, where tokens reach them."""
    left = routers(block)
    return [name for name, module in block.named_modules() if isinstance(module, nn.Linear) and name not in left]


def all_linears(model: "PreTrainedModel") -> dict[str, int]:
    """Every linear to quantise, by its full name, with the index of its block; embeddings and head are none of them."""
    prefix, blocks = decoder_blocks(model)
    found = {f"{prefix}.{i}.{name}": i for i, block in enumerate(blocks) for name in linear_names(block)}
    if not found:
        raise InputError(
            f"{type(model).__name__}: its decoder blocks hold no nn.Linear; use a model built from nn.Linear"
        )
    return found


def left_alone(model: "PreTrainedModel", linears: dict[str, int], called: set[str] | None) -> dict[str, str]:
    """Every other nn.Linear of the model and why it stays in 16 bit; called: names of those that a pass calls."""
    prefix, blocks = decoder_blocks(model)
    chosen = {f"{prefix}.{i}.{name}" for i, block in enumerate(blocks) for name in routers(block)}
    head = model.get_output_embeddings()
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    shared = {*tied, *tied.values()}
    reasons = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if module is head:
            reasons[name] = "output head"
        elif name in chosen:
            reasons[name] = "router"
        elif called is not None and name not in called:
            reasons[name] = "no token reaches it through a forward call"
        elif name not in linears:
            reasons[name] = "outside the decoder blocks"
        elif f"{name}.weight" in shared:  # Zamba: one attention and MLP, read by several blocks' inputs
            reasons[name] = "several blocks share its weights"
    return reasons


def embeddings_in(model: "PreTrainedModel", tensors: Iterable[str], tied: Mapping[str, str]) -> Embeddings:
    """The modules whose rows are tokens, as a file of these tensors has them. tied: by a parameter, whose it is."""
    at = {id(module): name for name, module in model.named_modules()}
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    embedding, head = at.get(id(inner), ""), at.get(id(outer), "")
    is_tied = f"{head}.weight" in tied and f"{head}.weight" not in tensors
    unread = ""
    if not isinstance(inner, nn.Embedding) or f"{embedding}.weight" not in tensors:
        unread = f"its embedding is a {type(inner).__name__}, not an Embedding with a weight in the file"
    elif type(outer) is not nn.Linear:
        unread = f"its head is a {type(outer).__name__}, not a Linear"
    elif inner.weight.shape != outer.weight.shape:
        unread = "its embedding's rows have another width than what its head reads"
    return {"embedding": embedding, "head": head, "tied": is_tied, "unread": unread}
