"""A checkpoint that the memory of its device does not hold, one decoder block after the other: every sequence goes
through a block before the next one's weights are needed; they are read meanwhile. What stands before the blocks and
behind them is a model of its own.

Batches, and what a block is called with, are those of the whole model, so that on a CPU its NLL is the same to the bit.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant.calibration.blocks import Opened, Run, fill
from quant.checkpoints import byte_codes, stored
from quant.data.tokens import Batch
from quant.errors import InputError
from quant.evaluation.head import Head
from quant.files.artifacts import read_json
from quant.files.units import megabytes
from quant.models.structure.notes import NotAChain, Note, Whole
from quant.runtime.compute import Compute, clock, memory_left

logger = logging.getLogger("quant")

BESIDE = 3 * 2**30, 2**29  # bytes that evaluation takes beside the weights, on a GPU and on a CPU
UNKNOWN = [torch.zeros(2, dtype=torch.int64)]


def too_large(checkpoint: Path, compute: Compute) -> bool:
    """Whether a checkpoint's weights, in the type that it runs in, are more than its device has left; and says so."""
    on_cpu = torch.device(compute.device).type == "cpu"
    with stored.opened(checkpoint) as weights:
        need = weights.count() * compute.dtype.itemsize + BESIDE[on_cpu]
    left = memory_left(compute.device)
    if need <= left:
        return False
    if byte_codes.rounds_inputs(read_json(checkpoint / "config.json")):
        raise InputError(
            f"{checkpoint}: takes {megabytes(need / 1e6)} MB of memory and {megabytes(left / 1e6)} are left, and "
            "inputs are rounded only where transformers has it whole; use more memory, or activations: none"
        )
    logger.info(
        "%s: takes %s MB of memory and %s are left: it runs block by block",
        *(checkpoint, megabytes(need / 1e6), megabytes(left / 1e6)),
    )
    return True


class Kept(Note):
    """Stands in a block's place once its work is done: the last one says what came out of it, the others pass on."""

    given: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        place = next((key for key in ("hidden_states", "hidden", "x") if key in kwargs), None)
        hidden = kwargs[place] if place is not None and not args else args[0]
        hidden = hidden if self.given is None else self.given
        if self.more is None:
            return hidden.as_subclass(Whole)
        return (hidden, *([None] * self.more))


class ByBlock(Head):
    """A model in two parts whose states are there for these sequences. opened: of a checkpoint's folder the weights
    that blocks are filled from."""

    def __init__(
        self,
        checkpoint: Path,
        sequences: list[Tensor],
        compute: Compute,
        opened: Callable[[Path], Opened] = stored.dense,
    ) -> None:
        begun = clock(compute.device)
        self._run = (
            compute.halving(lambda c: self._through(checkpoint, sequences, c, opened), sequences)
            if sequences
            else self._before(checkpoint, compute, opened)
        )
        self.batches = self._run.batches if sequences else []
        self._firsts = [batch.first for batch in self.batches]
        self._places = [Kept(block, index) for index, block in enumerate(self._run.blocks)]
        with self._standing(), opened(checkpoint) as weights:
            for name, module in self._run.model.named_children():
                fill(module, name, weights, compute.device, compute.dtype, self._run.tied)
            self._settle(compute.device)
            super().__init__(self._run.model, compute.device)
        self.before_s = clock(compute.device) - begun

    def _through(
        self, checkpoint: Path, sequences: list[Tensor], compute: Compute, opened: Callable[[Path], Opened]
    ) -> Run:
        run = Run(checkpoint, sequences, *compute, progress="evaluate by block", opened=opened)
        for _, _, _, advance in run.each():
            advance(lambda batch: None)
        return run

    def _before(self, checkpoint: Path, compute: Compute, opened: Callable[[Path], Opened]) -> Run:
        """What a head is asked for that takes no sequences."""
        run = Run(checkpoint, UNKNOWN, *compute, opened=opened)
        with opened(checkpoint) as weights:
            run.enter(weights)
        return run

    def _settle(self, device: str) -> None:
        """What stands in for a block returns what the model's loop takes of it: states, or a tuple of so many more."""
        ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
        for more in (None, 1, 2, 3):
            for place in self._places:
                place.more = more
            with contextlib.suppress(IndexError, RuntimeError, TypeError, ValueError):
                found = self._run.model.base_model(input_ids=ids, use_cache=False)[0]
                if found.shape[:2] == ids.shape:
                    return
        raise NotAChain("what its decoder blocks return is not known here; use a device whose memory holds the model")

    @contextlib.contextmanager
    def _standing(self) -> Iterator[None]:
        """Within it the model has what stands in for its blocks."""
        blocks = self._run.blocks
        real = list(blocks)
        for index, each in enumerate(self._places):
            blocks[index] = each
        try:
            yield
        finally:
            for index, block in enumerate(real):
                blocks[index] = block

    def states(self, ids: Tensor) -> Tensor:
        with self._standing():
            return super().states(ids).as_subclass(Tensor)

    def logits(self, rows: Tensor) -> Tensor:
        with self._standing():
            return super().logits(rows).as_subclass(Tensor)

    def of(self, batch: Batch) -> Tensor:
        rows = [self._row(batch.first + i, batch.ids.shape[1]) for i in range(len(batch.ids))]
        self._places[-1].given = torch.stack(rows)
        try:
            return self.states(batch.ids.to(self.device))
        finally:
            self._places[-1].given = None

    def _row(self, sequence: int, width: int) -> Tensor:
        """What came out of the last block of a sequence [width, hidden], padding among it."""
        at = next(i for i in reversed(range(len(self._firsts))) if self._firsts[i] <= sequence)
        return self._run.hidden.get(at)[sequence - self._firsts[at], :width]
