"""A causal LM run one decoder block at a time, with one block's weights in memory.

The model is built by transformers without weights; its own forward pass, over blocks that only take notes, gives every
block's other arguments (masks, rotary embeddings), so no architecture is named here. Sequences are padded on the
right: under causal attention the padding reaches no real token.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from quant.calibration.hidden import HiddenStates, hidden_states
from quant.data import tokens
from quant.errors import InputError
from quant.files import tensorfile
from quant.files.artifacts import rebuild
from quant.files.finite import check_finite
from quant.files.waits import together
from quant.models.structure.linears import all_linears, decoder_blocks, skeleton
from quant.models.structure.notes import Note, check_extras, noting, run_noted
from quant.models.structure.rotary import by_length, forget
from quant.models.structure.unrolled import Sorted
from quant.runtime import products

logger = logging.getLogger("quant")

Before = Callable[[tokens.Batch], None]
After = Callable[[Tensor], None]


class Weights(Protocol):
    """What blocks are filled from: a tensorfile.TensorFile, or one that has dense weights for packed ones."""

    path: Path
    names: set[str]

    def get(self, name: str, device: str = "cpu", dtype: torch.dtype | None = None) -> Tensor: ...

    def prefetch(self, names: Iterable[str], device: str) -> None: ...


Opened = AbstractContextManager[Weights]

ALIKE = 8  # tensors of one shape that a later batch's arguments are compared with


def from_file(checkpoint: Path) -> Opened:
    """A checkpoint's weights as they are stored."""
    return tensorfile.opened(checkpoint / "model.safetensors")


def fill(
    module: nn.Module,
    prefix: str,
    weights: Weights,
    device: str,
    dtype: torch.dtype,
    tied: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Loads a module's parameters and persistent buffers; refuses missing, misshapen or non-finite ones.

    tied: names that a file may lack, by what the model shares them from.
    """
    with together():
        for name, empty in module.state_dict(keep_vars=True).items():
            full = f"{prefix}.{name}"
            full = full if full in weights.names else tied.get(full, full)
            value = weights.get(full, device, dtype)
            if value.shape != empty.shape:
                raise InputError(
                    f"{weights.path}: {full} is {list(value.shape)} where config.json asks for {list(empty.shape)}; "
                    f"{rebuild(weights.path)}"
                )
            check_finite(full, value, weights.path)
            owner = module.get_submodule(name.rpartition(".")[0])
            if isinstance(empty, nn.Parameter):
                value = nn.Parameter(value, requires_grad=False)
            setattr(owner, name.rpartition(".")[2], value)
    for name, buffer in module.named_buffers():
        if not buffer.is_meta:
            owner = module.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], buffer.to(device))


def empty(module: nn.Module) -> None:
    """Frees what `fill` loaded; buffers that no file holds stay."""
    for name, value in module.state_dict(keep_vars=True).items():
        owner, freed = module.get_submodule(name.rpartition(".")[0]), value.detach().to("meta")
        if isinstance(value, nn.Parameter):
            freed = nn.Parameter(freed, requires_grad=False)
        setattr(owner, name.rpartition(".")[2], freed)


@dataclass(frozen=True)
class Arguments:
    """What a block is called with beside hidden states; place: the keyword that these come under, None where they come
    first."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: str | None

    @classmethod
    def of(cls, note: Note, known: dict[tuple[Any, ...], list[Tensor]], seen: dict[int, Any]) -> "Arguments":
        """Of a note; a tensor that an earlier batch had too is kept once."""
        return cls(once(note.args, known, seen), once(note.kwargs, known, seen), note.place)

    def call(self, block: nn.Module, hidden: Tensor) -> Any:
        with products.fast(hidden.device):
            if self.place is not None:
                return block(*self.args, **{self.place: hidden}, **self.kwargs)
            return block(hidden, *self.args, **self.kwargs)


def once(value: Any, known: dict[tuple[Any, ...], list[Tensor]], seen: dict[int, Any]) -> Any:
    """A value whose tensors, where one of `known` equals them, are that one. Containers stay their own: blocks of one
    pass may hand something on in them. seen: what this batch's blocks share, by address."""
    if isinstance(value, Tensor):
        if id(value) not in seen:
            alike = known.setdefault((tuple(value.shape), value.dtype), [])
            equal = next((each for each in alike if torch.equal(each, value)), None)
            if equal is None and len(alike) < ALIKE:
                alike.append(value)
            seen[id(value)] = value, value if equal is None else equal
        return seen[id(value)][1]
    if type(value) is tuple:
        return tuple(once(each, known, seen) for each in value)
    if type(value) in (dict, list) and id(value) not in seen:
        if isinstance(value, dict):
            seen[id(value)] = value, {key: once(each, known, seen) for key, each in value.items()}
        else:
            seen[id(value)] = value, [once(each, known, seen) for each in value]
    return seen[id(value)][1] if id(value) in seen else value


class Run:
    """Calibration hidden states on their way through the blocks.

    `each()` yields (index, full name prefix, block, advance); advance(before, after) runs every batch through the block
    and calls before(batch), so that hooks know what they see, and after(block's output), where it is given. What
    came out of the last block is in `hidden`, by batch.
    """

    hidden: HiddenStates

    def __init__(
        self,
        checkpoint: Path,
        sequences: list[Tensor],
        device: str,
        dtype: torch.dtype,
        batch_tokens: int,
        last: int | None = None,
        progress: str = "blocks",
        opened: Callable[[Path], Opened] = from_file,
    ) -> None:
        self.model = skeleton(checkpoint)
        self.prefix, self.blocks = decoder_blocks(self.model)
        self.n_linears = len(all_linears(self.model))
        self.tied = self.model.get_expanded_tied_weights_keys(all_submodels=True)
        self.depth = len(self.blocks) if last is None else last + 1
        if self.depth > len(self.blocks):
            raise InputError(f"layer {last}: the model has layers 0 to {len(self.blocks) - 1}; choose one of them")
        self._checkpoint, self._device, self._dtype, self._progress = checkpoint, device, dtype, progress
        self._opened, self._sequences = opened, sequences
        self._alike = by_length(self.model.config) or any(isinstance(each, Sorted) for each in self.model.modules())
        self._handed: set[int] = set()  # extras that blocks hand on
        self.batches = list(tokens.batches(sequences, batch_tokens, self._alike))

    def enter(
        self, weights: Weights, batches: Sequence[tokens.Batch] | None = None
    ) -> tuple[HiddenStates, list[list[Arguments]]]:
        """Each batch's embeddings, and each batch's other arguments for every block; batches: in place of the run's."""
        batches = self.batches if batches is None else batches
        body = self.model.base_model
        base = "" if body is self.model else self.model.base_model_prefix + "."
        width = self.model.config.get_text_config().hidden_size * self._dtype.itemsize
        hidden = hidden_states(self._device, width * sum(batch.ids.numel() for batch in batches))
        arguments: list[list[Arguments]] = []
        known: dict[tuple[Any, ...], list[Tensor]] = {}
        with noting(self.blocks) as notes:
            filled = []
            for name, module in body.named_children():
                if any(True for _ in module.parameters()) and module is not self.blocks:
                    fill(module, base + name, weights, self._device, self._dtype, self.tied)
                    filled.append(module)
                elif module is not self.blocks:
                    module.to(self._device)
            for name, _ in list(body.named_parameters(recurse=False)):  # beside its modules
                value = weights.get(base + name, self._device, self._dtype)
                setattr(body, name, nn.Parameter(value, requires_grad=False))
            for i, batch in enumerate(batches):
                if self._alike:
                    forget(body)
                self._handed |= run_noted(body, notes, batch.ids.to(self._device))
                assert notes[0].hidden is not None
                hidden.put(i, notes[0].hidden.to(self._dtype))
                seen: dict[int, Any] = {}
                arguments.append([Arguments.of(note, known, seen) for note in notes])
            for module in filled:
                empty(module)
        return hidden, arguments

    @torch.inference_mode()
    def each(self) -> Iterator[tuple[int, str, nn.Module, Callable[..., None]]]:
        with self._opened(self._checkpoint) as weights:
            hidden, arguments = self.enter(weights)
            self.hidden = hidden
            for index in tqdm(range(self.depth), desc=self._progress, unit="block"):
                block, name = self.blocks[index], f"{self.prefix}.{index}"
                fill(block, name, weights, self._device, self._dtype, self.tied)
                if index + 1 < self.depth:
                    weights.prefetch((f"{self.prefix}.{index + 1}.{part}" for part in block.state_dict()), self._device)

                def advance(
                    before: Before,
                    after: After = lambda out: None,
                    block: nn.Module = block,
                    name: str = name,
                    index: int = index,
                ) -> None:
                    finite = torch.ones((), dtype=torch.bool, device=self._device)
                    for i, batch in enumerate(self.batches):
                        before(batch)
                        out = arguments[i][index].call(block, hidden.get(i))
                        if index + 1 < len(self.blocks):
                            check_extras(out, self._handed, index)
                        out = out[0] if isinstance(out, (tuple, list)) else out
                        after(out)
                        hidden.put(i, out)
                        finite &= torch.isfinite(out).all()
                    if not finite:
                        raise InputError(
                            f"{name}: activations are NaN or infinite in {self._dtype}; set compute.dtype to float32"
                        )

                yield index, name, block, advance
                empty(block)
