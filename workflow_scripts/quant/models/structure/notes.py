"""What a model's own loop hands each of its decoder blocks: arguments, and the hidden states of the first.

Blocks are replaced by stand-ins that take notes and compute nothing, so that no architecture is named here. A model
whose blocks are not a chain (each reading what the one before it returned, and nothing else that depends on it) is
refused.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor, nn

from quant.errors import InputError
from quant.models.structure.unrolled import Unrolled

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NotAChain(InputError):
    """Blocks cannot be run one after another."""


def leaves(value: Any) -> Iterator[Tensor]:
    """Every tensor within tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from leaves(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from leaves(each)


def shares(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors lie in one piece of memory."""
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


def reads_more(index: int) -> NotAChain:
    return NotAChain(f"decoder block {index} reads more of an earlier one than its hidden states")


def check_extras(out: Any, handed: set[int], index: int) -> None:
    """Refuses what block `index` returns where the next one reads of it more than hidden states: `run_noted` says which
    extras those are. One that is None says nothing."""
    extras = out[1:] if isinstance(out, tuple) else ()
    if any(k < len(extras) and extras[k] is not None for k in handed):
        raise reads_more(index + 1)


class Whole(Tensor):
    """Hidden states that a loop does not take apart by rows where it expects a tuple of as many."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Tensor]:
        raise TypeError("a tensor, no tuple")


class Note(nn.Module):
    """Stands in a block's place for one pass of the model."""

    more: int | None = None  # what a block returns beside hidden states, as a tuple; None where it returns these alone
    marked = True  # whether those are tensors, so that a later block that reads them is found, or None
    thin = True  # whether hidden states that it returns are one number, however large: a batch's, kept for every block

    def __init__(self, block: nn.Module, index: int, earlier: "Sequence[Note]" = ()) -> None:
        """earlier: of the blocks before this one, from the first."""
        super().__init__()
        object.__setattr__(self, "block", block)  # no child, so that its weights are none of the model's
        # a copy: in a list that they all have, notes would hold each other, and what they note, for the collector
        self.index, self.earlier = index, tuple(earlier)
        self.forget()

    def forget(self) -> None:
        self.hidden: Tensor | None = None
        self.returned: Tensor | None = None
        self.extras: list[Tensor] = []
        self.handed: set[int] = set()  # which extras of an earlier block it reads
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.place: str | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(
                object.__getattribute__(self, "block"), name
            )  # the loop may read attention_type and the like

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.returned is not None:
            raise NotAChain(f"decoder block {self.index} is run twice in one pass, which is not known here")
        place = next((key for key in ("hidden_states", "hidden", "x") if key in kwargs), None)
        if place is None and not args:
            raise NotAChain(f"decoder block {self.index} is called without hidden states")
        self.place = None if args else place
        hidden = args[0] if place is None or args else kwargs.pop(place)
        self.args, self.kwargs, self.hidden = args[1:], kwargs, hidden
        before = self.earlier[-1] if self.earlier else None
        if before is not None and (before.returned is None or not shares(hidden, before.returned)):
            raise NotAChain(
                f"decoder block {self.index} does not read what block {self.index - 1} returns; the model computes "
                "something in between, which is not known here"
            )
        for each in leaves((self.args, self.kwargs)):
            if any(note.returned is not None and shares(each, note.returned) for note in self.earlier):
                raise reads_more(self.index)
            self.handed |= {k for note in self.earlier for k, extra in enumerate(note.extras) if shares(each, extra)}
        if not isinstance(hidden, Tensor):
            raise NotAChain(f"decoder block {self.index} reads a {type(hidden).__name__} in place of hidden states")
        first = self.earlier[0].hidden if self.earlier else hidden
        assert first is not None
        self.returned = first.new_zeros(1).expand(first.shape) if self.thin else first.clone()
        if self.more is None:
            return self.returned.as_subclass(Whole)  # again where the model's loop takes [0] of it, as of a tuple
        self.extras = [first.new_zeros(1) for _ in range(self.more)] if self.marked else []
        return (self.returned, *(self.extras if self.marked else [None] * self.more))


@contextlib.contextmanager
def noting(blocks: nn.ModuleList, last: type[Note] = Note) -> Iterator[list[Note]]:
    """Every block's stand-in while the body runs; last: the last one's kind."""
    real = list(blocks)
    notes: list[Note] = []
    for index, block in enumerate(real):
        notes.append((last if index + 1 == len(real) else Note)(block, index, notes))
    for index, note in enumerate(notes):
        blocks[index] = note
    try:
        yield notes
    finally:
        for index, block in enumerate(real):
            blocks[index] = block


def run_noted(body: nn.Module, notes: list[Note], ids: Tensor) -> set[int]:
    """One pass of the body over token ids [n, width], in which every block's stand-in takes its notes; returns which
    of the extras that a block returns a later one reads (check_extras)."""
    if notes[0].thin:
        with contextlib.suppress(NotAChain):
            return _run_noted(body, notes, ids, True)
    return _run_noted(body, notes, ids, False)  # a loop may write into hidden states, or want them in one piece


def _run_noted(body: nn.Module, notes: list[Note], ids: Tensor, thin: bool) -> set[int]:
    failure = ""
    handed: set[int] = set()
    ways = [(n, marked) for n in dict.fromkeys((notes[0].more, None, 1, 2, 3)) for marked in (True, False)]
    for more, marked in ways:
        for note in notes:
            note.forget()
            note.thin, note.more, note.marked = thin, more, marked
        try:
            body(input_ids=ids, use_cache=False)
        except (NotAChain, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the loop takes more of a block, or what follows the last one cannot go on
            # in words: the error itself holds this call, which would hold it
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        if notes[-1].returned is not None:
            handed |= {k for note in notes for k in note.handed}
            if not (marked and handed):  # else once more, with None in the marks' place
                return handed
    raise NotAChain(f"its decoder blocks cannot be run one after another ({failure or 'it never calls them'})")


def called(model: "PreTrainedModel", blocks: nn.ModuleList) -> set[str] | None:
    """Names within the model of the linears that a forward pass calls; None where it cannot be tried without weights.

    The model goes to `meta`. Raises NotAChain where its blocks are no chain.
    """
    ids = torch.zeros(1, 8, dtype=torch.int64, device="meta")
    names: set[str] = set()
    given: list[tuple[int, Any]] = []  # what each block returns
    whole: nn.Module = model
    hooks = [
        module.register_forward_hook(lambda module, args, out, name=name: names.add(name))
        for name, module in whole.to("meta").named_modules()
        if isinstance(module, nn.Linear)
    ]
    for index, block in enumerate(blocks):
        hooks.append(block.register_forward_hook(lambda module, args, out, index=index: given.append((index, out))))
    # whoever traces a model may not read its masks' numbers either
    with torch.no_grad(), mock.patch("transformers.masking_utils.is_tracing", lambda tensor=None: True):
        try:
            model(input_ids=ids, use_cache=False)
        except Exception:  # what needs numbers is found out with numbers, by the first pass over text
            return None
        finally:
            for hook in hooks:
                hook.remove()
        with noting(blocks) as notes:
            handed = run_noted(model.base_model, notes, ids)
        for index, out in given[:-1]:
            check_extras(out, handed, index)
    return names


def packs(model: "PreTrainedModel", linears: Iterable[str]) -> bool:
    """Whether transformers starts a model whose linears hold packed weights in place of `weight`; the model, on `meta`,
    is of no use afterwards."""
    within = [name for name, module in model.named_modules() if isinstance(module, Unrolled)]
    for name in linears:
        if not name.startswith(tuple(f"{path}." for path in within)):  # transformers unpacks experts as it loads them
            linear = model.get_submodule(name)
            del linear._parameters["weight"]
            linear.register_parameter("weight_packed", nn.Parameter(torch.empty(1, device="meta"), requires_grad=False))
    for path in within:
        setattr(model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], nn.Module())
    for module in model.modules():
        vars(module)["_is_hf_initialized"] = False
    try:
        model.initialize_weights()
    except AttributeError:
        return False
    return True
