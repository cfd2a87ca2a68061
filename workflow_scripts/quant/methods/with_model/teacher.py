"""The original beside a model that is tuned: its blocks run once, its head as often as it is asked."""

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quant.calibration.hidden import RESIDENT
from quant.data.tokens import Batch, batches
from quant.models.structure.linears import decoder_blocks
from quant.runtime.instead import doing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("quant")


def given_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Of a block's arguments."""
    return args[0] if args else kwargs["hidden_states"]


class Teacher:
    """A model's logits, of token ids or of what its last block put out for them."""

    def __init__(self, model: "PreTrainedModel", device: str) -> None:
        self._model, self._device = model, device
        self._blocks: list[nn.Module] = list(decoder_blocks(model)[1])
        self._last: Any = None  # the last block's output

    @torch.no_grad()
    def logits(self, ids: Tensor, states: Tensor | None = None) -> Tensor:
        """[n, width, vocab] of ids [n, width]; states [n, width, hidden]: of `keep`, with which no block runs."""
        if states is None:
            return self._model(input_ids=ids, use_cache=False).logits

        def passes(*args: Any, **kwargs: Any) -> Any:
            return self._as_block(given_hidden(args, kwargs))

        def last(*args: Any, **kwargs: Any) -> Any:
            return self._as_block(states)

        with doing(dict.fromkeys(self._blocks[:-1], passes) | {self._blocks[-1]: last}):
            return self._model(input_ids=ids, use_cache=False).logits

    def _as_block(self, states: Tensor) -> Any:
        """As a block hands them on."""
        return (states, *self._last[1:]) if isinstance(self._last, tuple) else states

    def _states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the last block puts out, and the logits."""

        def note(module: nn.Module, args: Any, out: Any) -> None:
            self._last = out

        hook = self._blocks[-1].register_forward_hook(note)
        try:
            logits = self.logits(ids)
        finally:
            hook.remove()
        return self._last[0] if isinstance(self._last, tuple) else self._last, logits

    def _comes_apart(self, batch: Batch) -> bool:
        """Whether kept states make the same logits."""
        ids = batch.ids.to(self._device)
        states, logits = self._states(ids)
        extras = self._last[1:] if isinstance(self._last, tuple) else ()
        if not isinstance(states, Tensor) or any(each is not None for each in extras):
            return False
        try:
            return torch.equal(self.logits(ids, states.clone()), logits)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # a loop that wants more of its blocks
            return False

    @torch.no_grad()
    def keep(self, sequences: list[Tensor], rows: int) -> list[Tensor] | None:
        """Each sequence's states [length, hidden], on the host where they are large; None of a model that does not come
        apart there. rows: tokens at once."""
        if not self._comes_apart(next(batches(sequences, 1))):
            logger.info("%s: its head cannot be run alone; it runs whole in each step", type(self._model).__name__)
            return None
        found: list[Tensor] = []
        total = 0
        for batch in batches(sequences, rows):
            states, _ = self._states(batch.ids.to(self._device))
            for own, length in zip(states, batch.lengths.tolist(), strict=True):
                found.append(own[:length].clone())
                total += found[-1].nbytes
                if total > RESIDENT:
                    found = [each.cpu() for each in found]
        return found
