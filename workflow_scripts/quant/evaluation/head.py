"""A causal LM in two parts, so that logits come a few rows at a time, and again from states that were kept."""

import contextlib
import logging
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from quant.data.tokens import Batch
from quant.runtime.forward import Forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("quant")

CHUNK = 512  # rows of logits at a time, in float32, on a CPU
CHUNK_BYTES = 2**29  # of logits at a time, in float32, on a GPU


class Parts(StrEnum):
    """Where a model comes apart: after its body, before its head, or nowhere."""

    BODY = "body"
    HEAD = "head"
    WHOLE = "whole"


class _Said(nn.Module):
    """Stands in the place of a model's body and says what the body said before, so that the model's own forward pass
    does what follows it: head, scaling, soft-capping."""

    def __init__(self) -> None:
        super().__init__()
        self.states: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        return BaseModelOutputWithPast(last_hidden_state=cast("torch.FloatTensor", self.states))


class _Reached(Exception):
    """The head was called; what follows it is not wanted."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def padded(head: nn.Module) -> nn.Parameter | None:
    """A linear head's weight [vocab, hidden] with zeros to a multiple of 8 rows, where it is not one already."""
    if not isinstance(head, nn.Linear) or head.bias is not None or head.out_features % 8 == 0:
        return None
    more = -head.out_features % 8
    return nn.Parameter(nn.functional.pad(head.weight, (0, 0, 0, more)), requires_grad=False)


@contextlib.contextmanager
def padding(head: nn.Module, weight: nn.Parameter | None) -> Iterator[int | None]:
    """Lends a head its padded weight, if there is one; gives the number of logits to keep, None for all."""
    if weight is None:
        yield None
        return
    own, head.weight = head.get_parameter("weight"), weight
    try:
        yield len(own)
    finally:
        head.weight = own


class Head:
    """A causal LM in two parts: `states` of token ids, then `logits` of some of their rows. before_s: seconds that
    sequences took before they are asked for.

    A GPU's matrix units want rows of logits that are a multiple of 16 bytes and are several times slower on others
    (MiniCPM's vocabulary is 122,753), so the head's weight has zeros added meanwhile and their logits are cut off.
    """

    def __init__(self, model: "PreTrainedModel", device: str) -> None:
        self.model, self.device, self.before_s = model, device, 0.0
        self._said, self._name = _Said(), model.base_model_prefix
        self._forward = Forward(model)
        self._body = getattr(model, self._name, model)
        self.module = model.get_output_embeddings()  # which a model without its body does not find
        self._padded = None if torch.device(device).type == "cpu" else padded(self.module)
        ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
        whole = model(input_ids=ids, use_cache=False).logits[0]
        self.parts = next(parts for parts in Parts if self._agrees(parts, ids, whole))
        if self.parts is Parts.WHOLE:
            logger.info("%s: its head cannot be run alone; logits come whole", type(model).__name__)
        found = self.states(ids)
        self.width, self.dtype, self.vocabulary = found.shape[-1], found.dtype, whole.shape[-1]

    def _agrees(self, parts: Parts, ids: Tensor, whole: Tensor) -> bool:
        """Whether both parts together give what the model gives."""
        self.parts = parts
        try:
            apart = self.logits(self.states(ids)[0])
        except (AttributeError, RuntimeError, TypeError, ValueError):  # the model calls its parts in another way
            return False
        return apart.shape == whole.shape and torch.allclose(apart, whole, rtol=1e-2, atol=1e-2, equal_nan=True)

    def _after_body(self, rows: Tensor) -> Tensor:
        self._said.states = rows[None]
        setattr(self.model, self._name, self._said)
        ids = torch.zeros(1, len(rows), dtype=torch.int64, device=rows.device)
        try:
            return self.model(input_ids=ids, use_cache=False).logits
        finally:
            setattr(self.model, self._name, self._body)

    def _before_head(self, ids: Tensor) -> Tensor:
        """What goes into the head."""

        def reached(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            raise _Reached(args[0])

        hook = self.module.register_forward_pre_hook(reached)
        try:
            self.model(input_ids=ids, use_cache=False)
        except _Reached as found:
            return found.states
        finally:
            hook.remove()
        raise ValueError("the head was not called")

    def _from_head(self, rows: Tensor) -> Tensor:
        """The body runs on one token, and its states are replaced."""
        hook = self.module.register_forward_pre_hook(lambda module, args: (rows[None], *args[1:]))
        try:
            return self.model(
                input_ids=torch.zeros(1, 1, dtype=torch.int64, device=rows.device), use_cache=False
            ).logits
        finally:
            hook.remove()

    def states(self, ids: Tensor) -> Tensor:
        """Hidden states [n, width, hidden] of ids [n, width]; their logits where the model does not come apart."""
        with self._forward():
            if self.parts is Parts.BODY:
                return self._body(input_ids=ids, use_cache=False).last_hidden_state
            if self.parts is Parts.HEAD:
                return self._before_head(ids)
            return self.model(input_ids=ids, use_cache=False).logits

    def of(self, batch: Batch) -> Tensor:
        """`states` of a batch."""
        return self.states(batch.ids.to(self.device))

    def read(self, ids: Tensor) -> Any:
        """What the body keeps of ids [n, width], for `behind`."""
        with self._forward():
            return self._body(input_ids=ids, use_cache=True).past_key_values

    def behind(self, kept: Any, ids: Tensor) -> Tensor:
        """`states` of ids that follow those of `kept`, to which it adds them."""
        with self._forward():
            return self._body(input_ids=ids, past_key_values=kept, use_cache=True).last_hidden_state

    def logits(self, rows: Tensor) -> Tensor:
        """[n, vocab] of rows [n, …] of `states`."""
        if self.parts is Parts.WHOLE:
            return rows
        with padding(self.module, self._padded) as vocabulary, self._forward():
            found = self._after_body(rows) if self.parts is Parts.BODY else self._from_head(rows)
        return found[0][:, :vocabulary]

    def rows_at_once(self) -> int:
        """Rows whose logits are in memory together."""
        return CHUNK if self.device == "cpu" else max(1, CHUNK_BYTES // (4 * self.vocabulary))
