"""Experts that transformers holds as one 3-D parameter, as one nn.Linear each, under the names that files give them.

transformers keeps gate and up of all experts in gate_up_proj [experts, 2·intermediate, hidden] and down in down_proj
[experts, hidden, intermediate], and writes them expert by expert. Here they are what is written, so that whatever works
on a model's linears works on its experts; a packed file of theirs is one that transformers and vLLM read.
"""

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quant.errors import InputError

GATED, PLAIN, DOWN = "gate_up_proj", "up_proj", "down_proj"


class Layout(NamedTuple):
    """Names of an expert's linears in a file (gate: None where it has none)."""

    gate: str | None
    up: str
    down: str


class Unrolled:
    """The forward pass of an experts module whose experts are its children, of the same results."""

    layout: Layout
    num_experts: int

    def one(self, index: int, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Expert `index` on x [n, hidden]; rows [n]: which of the layer's tokens they are, for whoever watches."""
        expert = self.get_submodule(str(index))
        for linear in expert.children():
            linear.rows = rows
        up = getattr(expert, self.layout.up)(x)
        if self.layout.gate is None:
            inner = self.act_fn(up)
        else:
            inner = self._apply_gate(torch.cat([getattr(expert, self.layout.gate)(x), up], dim=-1))
        return getattr(expert, self.layout.down)(inner)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states [tokens, hidden]; top_k_index, top_k_weights [tokens, k]."""
        out = torch.zeros_like(hidden_states, dtype=torch.float32)
        for index in range(self.num_experts):
            if hidden_states.is_meta:  # every expert, to see which linears are called
                out = out + self.one(index, hidden_states)
                continue
            rows, place = torch.where(top_k_index == index)
            if len(rows):
                found = self.one(index, hidden_states[rows], rows)
                out.index_add_(0, rows, (found * top_k_weights[rows, place, None]).float())
        return out.to(hidden_states.dtype)


def held(model: nn.Module) -> dict[str, nn.Module]:
    """By name, the modules that hold several experts in a 3-D parameter."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, Unrolled) or of_experts(module)
    }


def of_experts(module: nn.Module) -> bool:
    """Whether a module's own parameters are experts', whatever the layout."""
    own = [parameter for _, parameter in module.named_parameters(recurse=False)]
    kind = type(module).__name__.lower()
    return "expert" in kind and any(parameter.ndim == 3 and min(parameter.shape) > 1 for parameter in own)


def unknown(module: nn.Module) -> InputError:
    return InputError(
        f"mixture of experts of a layout not known here ({type(module).__name__}): its experts would stay in 16 bit; "
        "use a model whose experts transformers writes one by one, or a dense one"
    )


def layout_of(model: nn.Module, path: str, experts: nn.Module) -> Layout:
    """What transformers calls the linears of an expert when it writes them; refuses a layout that is not known."""
    from transformers.core_model_loading import revert_weight_conversion

    known = {"has_gate", "has_bias", "is_transposed", "is_concatenated"} <= set(vars(experts))
    if not known or experts.has_bias or experts.is_transposed or not experts.is_concatenated:
        raise unknown(experts)
    first = GATED if experts.has_gate else PLAIN
    leaves: dict[tuple[str, int], set[str]] = {}
    for name, parts in ((first, 2 if experts.has_gate else 1), (DOWN, 1)):
        n = getattr(experts, name).shape[0]
        code = torch.arange(float(n * parts)).view(n, parts, 1)  # each row says where it came from
        try:
            written = revert_weight_conversion(model, {f"{path}.{name}": code})
        except Exception:  # an operation that wants the weights' real shapes
            raise unknown(experts) from None
        for key, value in written.items():
            found = re.fullmatch(r".*\.(\d+)\.(\w+)\.weight", key)
            if found is None or value.numel() != 1 or int(found[1]) != int(value.item()) // parts:
                raise unknown(experts)
            leaves.setdefault((name, int(value.item()) % parts), set()).add(found[2])
    if any(len(names) != 1 for names in leaves.values()):
        raise unknown(experts)
    names = {key: next(iter(found)) for key, found in leaves.items()}
    if experts.has_gate:
        return Layout(names[first, 0], names[first, 1], names[DOWN, 0])
    return Layout(None, names[first, 0], names[DOWN, 0])


def linear(weight: Tensor) -> nn.Linear:
    """An nn.Linear of a weight [out, in], which is not copied."""
    with torch.device("meta"):
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return made


def unroll(model: nn.Module) -> nn.Module:
    """The model with every expert's linears as modules of its own; their weights are views of what was there."""
    found = {path: module for path, module in held(model).items() if not isinstance(module, Unrolled)}
    layouts: dict[type, Layout] = {}
    for path, module in found.items():
        if type(module) not in layouts:
            layouts[type(module)] = layout_of(model, path, module)
    for module in found.values():
        layout, kind = layouts[type(module)], type(module)
        first, down = getattr(module, GATED if layout.gate else PLAIN), module.down_proj
        half = first.shape[1] // 2
        for index in range(first.shape[0]):
            expert = nn.Module()
            if layout.gate:
                expert.add_module(layout.gate, linear(first[index, :half]))
            expert.add_module(layout.up, linear(first[index, half:] if layout.gate else first[index]))
            expert.add_module(layout.down, linear(down[index]))
            module.add_module(str(index), expert)
        module.num_experts = first.shape[0]
        for name in (GATED if layout.gate else PLAIN, DOWN):
            del module._parameters[name]
        module.layout = layout
        module.__class__ = type(f"Unrolled{kind.__name__}", (Unrolled, kind), {})
    return model


def split(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """3-D tensors of an unrolled model's experts as its own: views of them."""
    tensors = dict(tensors)
    for path, module in held(model).items():
        first = GATED if module.layout.gate else PLAIN
        if f"{path}.{first}" not in tensors or f"{path}.{DOWN}" not in tensors:
            continue
        both, down = tensors.pop(f"{path}.{first}"), tensors.pop(f"{path}.{DOWN}")
        half = both.shape[1] // 2 if module.layout.gate else 0
        for index in range(both.shape[0]):
            if module.layout.gate:
                tensors[f"{path}.{index}.{module.layout.gate}.weight"] = both[index, :half]
            tensors[f"{path}.{index}.{module.layout.up}.weight"] = both[index, half:]
            tensors[f"{path}.{index}.{module.layout.down}.weight"] = down[index]
    return tensors


def routing(block: nn.Module) -> dict[str, Any]:
    """By name, the unrolled experts modules of a block."""
    return {name: module for name, module in block.named_modules() if isinstance(module, Unrolled)}
