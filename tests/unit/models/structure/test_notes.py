"""What a loop hands its blocks: found however many rows there are, and refused where blocks hand on more than hidden
states."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quant.models.structure.notes import NotAChain, check_extras, noting, run_noted


class Body(nn.Module):
    """Three blocks that a loop of a kind calls."""

    def __init__(self, loop: Callable[["Body", Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks, self.loop = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), loop

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        return self.loop(self, torch.nn.functional.one_hot(input_ids, 4).float())


def alone(body: Body, hidden: Tensor) -> Tensor:
    for block in body.blocks:
        hidden = block(hidden, "mask")
    return hidden


def first(body: Body, hidden: Tensor) -> Tensor:
    for block in body.blocks:
        hidden = block(hidden, "mask")[0]
    return hidden


def pair(body: Body, hidden: Tensor) -> Tensor:
    for block in body.blocks:
        hidden, _ = block(hidden, "mask")
    return hidden


def handing_on(body: Body, hidden: Tensor) -> Tensor:
    state = None
    for block in body.blocks:
        hidden, state = block(hidden, state)
    return hidden


def between(body: Body, hidden: Tensor) -> Tensor:
    for block in body.blocks:
        hidden = block(hidden * 2)
    return hidden


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("loop", [alone, first, pair])
def test_arguments_are_those_of_the_loop(loop: Callable[[Body, Tensor], Tensor], rows: int) -> None:
    """Two rows are no tuple of two."""
    body = Body(loop)
    with noting(body.blocks) as notes:
        assert run_noted(body, notes, torch.zeros(rows, 5, dtype=torch.long)) == set()
        assert [note.args for note in notes] == [("mask",)] * 3
        assert notes[0].hidden is not None and notes[0].hidden.shape == (rows, 5, 4)


def in_one_piece(body: Body, hidden: Tensor) -> Tensor:
    for block in body.blocks:
        hidden = block(hidden.contiguous(), "mask")
    return hidden


@pytest.mark.parametrize(("loop", "numbers"), [(alone, 1), (pair, 1), (in_one_piece, 3 * 5 * 4)])
def test_what_stands_for_hidden_states_takes_no_memory(loop: Callable[[Body, Tensor], Tensor], numbers: int) -> None:
    """Of every block, however many there are, unless the loop needs all of them."""
    body = Body(loop)
    with noting(body.blocks) as notes:
        for _ in range(2):
            run_noted(body, notes, torch.zeros(3, 5, dtype=torch.long))
            assert [note.args for note in notes] == [("mask",)] * 3
            kept = [note.returned.untyped_storage().nbytes() for note in notes if note.returned is not None]
            assert kept == [4 * numbers] * 3


@pytest.mark.parametrize("loop", [alone, first, pair])
def test_no_note_waits_for_the_collector(loop: Callable[[Body, Tensor], Tensor]) -> None:
    """Nor one of a way that failed."""
    body = Body(loop)
    gc.disable()
    try:
        with noting(body.blocks) as notes:
            run_noted(body, notes, torch.zeros(3, 5, dtype=torch.long))
            held = [weakref.ref(note) for note in notes]
            notes.clear()
        assert [note() for note in held] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_what_is_handed_on_is_found(rows: int) -> None:
    body = Body(handing_on)
    with noting(body.blocks) as notes:
        handed = run_noted(body, notes, torch.zeros(rows, 5, dtype=torch.long))
        assert handed == {0} and [note.args for note in notes] == [(None,)] * 3


@pytest.mark.parametrize(("out", "refused"), [
    ((torch.zeros(1), None), False), ((torch.zeros(1), torch.zeros(1)), True), (torch.zeros(3), False),
    ((torch.zeros(1),), False),
])  # fmt: skip
def test_an_extra_that_says_something_is_refused(out: Any, refused: bool) -> None:
    check_extras(out, set(), 0)
    if not refused:
        check_extras(out, {0}, 0)
        return
    with pytest.raises(NotAChain, match="decoder block 1 reads more of an earlier one than its hidden states"):
        check_extras(out, {0}, 0)


def test_what_is_computed_between_blocks_is_refused() -> None:
    body = Body(between)
    with noting(body.blocks) as notes, pytest.raises(NotAChain, match="computes something in between"):
        run_noted(body, notes, torch.zeros(1, 5, dtype=torch.long))
