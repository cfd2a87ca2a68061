"""Experts modules whose experts are children of theirs, in the ways that transformers calls them."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

GATED, PLAIN, DOWN = "gate_up_proj", "up_proj", "down_proj"


class Layout(NamedTuple):
    """Names of an expert's linears (gate: None where it has none), how they lie in an experts module's parameters, and
    whether files hold those whole."""

    gate: str | None
    up: str
    down: str
    has_bias: bool = False
    transposed: bool = False
    concatenated: bool = True
    whole: bool = False

    @property
    def first(self) -> str:
        """The parameter that holds gate and up."""
        return GATED if self.gate else PLAIN

    def rows(self, leaf: str, n: int) -> slice:
        """Which of the n output rows of the first parameter are gate's, or up's."""
        if self.gate is None:
            return slice(None)
        second = leaf != self.gate
        if not self.concatenated:
            return slice(int(second), None, 2)
        return slice(n // 2, None) if second else slice(n // 2)


@contextlib.contextmanager
def seeing(linears: Iterable[nn.Module], rows: Tensor | None) -> Iterator[None]:
    """Within it, linears say by `rows` which of the layer's tokens they see; no longer, as every block has its own."""
    linears = list(linears)
    for linear in linears:
        vars(linear)["rows"] = rows
    try:
        yield
    finally:
        for linear in linears:
            del vars(linear)["rows"]


class Unrolled(nn.Module):
    """An experts module whose experts are its children, of the same results."""

    layout: Layout
    num_experts: int
    act_fn: Callable[[Tensor], Tensor]

    def linears(self, index: int) -> list[tuple[str, nn.Linear]]:
        """An expert's, by their names within the module."""
        children = self.get_submodule(str(index)).named_children()
        return [(f"{index}.{leaf}", each) for leaf, each in children if isinstance(each, nn.Linear)]

    def called(self) -> int:
        """How many of the experts compute anything."""
        return self.num_experts

    def readers(self) -> list[str]:
        """Of an expert's linears, those that are the first to read something."""
        return [self.layout.up, self.layout.down]

    def one(self, index: int, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Expert `index` on x [n, hidden]; rows [n]: which of the layer's tokens they are, for whoever watches."""
        expert = self.get_submodule(str(index))
        with seeing(expert.children(), rows):
            return self._through(expert, x)

    def _through(self, expert: nn.Module, x: Tensor) -> Tensor:
        up, down = getattr(expert, self.layout.up)(x), getattr(expert, self.layout.down)
        if self.layout.gate is None:
            return down(self.act_fn(up))
        gate = getattr(expert, self.layout.gate)(x)
        apply_gate = getattr(self, "_apply_gate", None)
        if apply_gate is None:
            return down(self.act_fn(gate) * up)
        both = torch.cat([gate, up], -1) if self.layout.concatenated else torch.stack([gate, up], -1).flatten(-2)
        return down(apply_gate(both))

    def tokens(self, given: Tensor, n: int) -> Tensor:
        """Of what the module is given first, the layer's n tokens [n, hidden]."""
        return given


class Routed(Unrolled):
    """Experts that are told which tokens are theirs."""

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


class RoutedOrKept(Routed):
    """The same, where those after the last one with weights return what they get (LongCat)."""

    num_routed_experts: int

    def called(self) -> int:
        return self.num_routed_experts

    def one(self, index: int, x: Tensor, rows: Tensor | None = None) -> Tensor:
        return x if index >= self.num_routed_experts else super().one(index, x, rows)


class Repeated(Unrolled):
    """Experts that each get all tokens, those that are not theirs as zeros (Llama 4)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[experts·tokens, hidden]."""
        given = hidden_states.view(self.num_experts, -1, hidden_states.shape[-1])
        if hidden_states.is_meta:
            return torch.cat([self.one(index, x) for index, x in enumerate(given)])
        out = torch.zeros_like(given)
        for index, x in enumerate(given):
            (rows,) = torch.where(x.any(-1))
            if len(rows):
                out[index, rows] = self.one(index, x[rows], rows)
        return out.flatten(0, 1)

    def tokens(self, given: Tensor, n: int) -> Tensor:
        """As their experts see them, in the mean of those."""
        given = given.view(self.num_experts, n, -1)
        return given.sum(0) / given.any(-1).sum(0).clamp(min=1)[:, None]


class Sorted(Unrolled):
    """One linear an expert, over tokens in the order of their experts (JetMoE, Aria): whose is padding is not known."""

    def linears(self, index: int) -> list[tuple[str, nn.Linear]]:
        return [
            (name, each) for name, each in self.named_children() if name == str(index) and isinstance(each, nn.Linear)
        ]

    def readers(self) -> list[str]:
        return [""]

    def one(self, index: int, x: Tensor, rows: Tensor | None = None) -> Tensor:
        linear = self.get_submodule(str(index))
        with seeing([linear], rows):
            return linear(x)

    def forward(self, inputs: Tensor, sizes: Any) -> Tensor:
        """inputs [tokens·k, in]; sizes [experts]: how many of them are each expert's."""
        parts = inputs.split(sizes.tolist() if isinstance(sizes, Tensor) else list(sizes))
        found = [self.one(i, x, torch.arange(len(x))) for i, x in enumerate(parts) if len(x)]
        return torch.cat(found)

    def tokens(self, given: Tensor, n: int) -> Tensor:
        """As many, evenly from all experts' inputs."""
        return given[:: len(given) // n]
