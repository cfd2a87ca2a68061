"""Perplexity of a checkpoint by plain transformers: loading it, and each sequence's NLL.

NLL is in nats per predicted token; a sequence of n tokens predicts n-1.
"""

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from quant.data.tokens import Batch, Tokens, batches
from quant.errors import InputError
from quant.evaluation.divergence import CHUNK, Reference
from quant.files.artifacts import rebuild
from quant.models.compute import halved, where_installed
from quant.models.rotary import by_length, forget

logger = logging.getLogger("quant")

CHUNK_BYTES = 2**29  # of logits at a time, in float32, on a GPU


@where_installed
def kernels() -> ModuleType:
    """Fused kernels for GPUs, by Triton."""
    from quant.evaluation import loss_kernels

    return loss_kernels


def load_model(checkpoint: Path, device: str, dtype: torch.dtype) -> nn.Module:
    """The checkpoint as any user would load it."""
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).to(device).eval()
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{checkpoint}: cannot be loaded ({str(error).splitlines()[0]}); "
            f"{rebuild(checkpoint / 'model.safetensors')}"
        ) from None
    with torch.inference_mode():  # packed weights are unpacked at the first forward pass; that is none of its speed
        model(torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    return model


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) in float64 of logits [n, vocab], targets [n] → [n]."""
    if logits.is_cuda and logits.stride(1) == 1 and kernels() is not None:
        return kernels().token_nll(logits, targets).double()
    log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    return -log_p.gather(1, targets[:, None])[:, 0].double()


class _Said(nn.Module):
    """Stands in the place of a model's body and says what the body said before, so that the model's own forward pass
    does what follows it: head, scaling, soft-capping."""

    def __init__(self) -> None:
        super().__init__()
        self.states: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        return BaseModelOutputWithPast(last_hidden_state=self.states)


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
    own, head.weight = head.weight, weight
    try:
        yield len(own)
    finally:
        head.weight = own


class Head:
    """A causal LM in two parts: `states` of token ids, then `logits` of some of their rows.

    A GPU's matrix units want rows of logits that are a multiple of 16 bytes and are several times slower on others
    (MiniCPM's vocabulary is 122,753), so the head's weight has zeros added meanwhile and their logits are cut off.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        self._model, self._said, self._name = model, _Said(), model.base_model_prefix
        self._body = getattr(model, self._name, model)
        self._head = model.get_output_embeddings()  # which a model without its body does not find
        self._padded = None if torch.device(device).type == "cpu" else padded(self._head)
        self.splits = self._agrees(torch.zeros(1, 2, dtype=torch.int64, device=device))
        if not self.splits:
            logger.info("%s: its head cannot be run alone; logits come whole", type(model).__name__)

    def _agrees(self, ids: Tensor) -> bool:
        """Whether both parts together give what the model gives."""
        whole = self._model(input_ids=ids, use_cache=False).logits[0]
        try:
            apart = self._alone(self._body(input_ids=ids, use_cache=False).last_hidden_state[0])
        except (AttributeError, RuntimeError, TypeError, ValueError):  # the model calls its body in another way
            return False
        return apart.shape == whole.shape and torch.allclose(apart, whole, rtol=1e-2, atol=1e-2, equal_nan=True)

    def _alone(self, rows: Tensor) -> Tensor:
        self._said.states = rows[None]
        setattr(self._model, self._name, self._said)
        ids = torch.zeros(1, len(rows), dtype=torch.int64, device=rows.device)
        try:
            with padding(self._head, self._padded) as vocabulary:
                return self._model(input_ids=ids, use_cache=False).logits[0][:, :vocabulary]
        finally:
            setattr(self._model, self._name, self._body)

    def states(self, ids: Tensor) -> Tensor:
        """Hidden states [n, width, hidden] of ids [n, width]; their logits where the model does not come apart."""
        if self.splits:
            return self._body(input_ids=ids, use_cache=False).last_hidden_state
        return self._model(input_ids=ids, use_cache=False).logits

    def logits(self, rows: Tensor) -> Tensor:
        """[n, vocab] of rows [n, …] of `states`."""
        return self._alone(rows) if self.splits else rows

    def rows_at_once(self, device: str) -> int:
        """Rows whose logits are in memory together."""
        if device == "cpu":
            return CHUNK
        return max(1, CHUNK_BYTES // (4 * self._model.config.get_text_config().vocab_size))


def clock(device: str) -> float:
    """Seconds, once the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def judge(head: Head, batch: Batch, device: str, reference: Reference) -> tuple[list[float], float]:
    """Each sequence's NLL (sum, nats), and the seconds that took without the comparison with the reference."""
    begun, comparing = clock(device), 0.0
    states = head.states(batch.ids.to(device)).flatten(0, 1)
    predicting = torch.arange(batch.ids.shape[1]) < batch.lengths[:, None] - 1
    rows = predicting.flatten().nonzero()[:, 0]
    targets = batch.ids.flatten()[rows + 1].to(device)
    rows, n = rows.to(device), head.rows_at_once(device)
    nll = torch.empty(len(rows), dtype=torch.float64, device=device)
    for some, wanted, found in zip(rows.split(n), targets.split(n), nll.split(n), strict=True):
        logits = head.logits(states[some])
        found.copy_(token_nll(logits, wanted))
        if reference.done < reference.tokens:
            paused = clock(device)
            reference.see(logits)
            comparing += clock(device) - paused
    sums = torch.stack([part.sum() for part in nll.split((batch.lengths - 1).tolist())]).tolist()
    return sums, clock(device) - begun - comparing


@torch.inference_mode()
def evaluate(
    model: nn.Module, tokens: Tokens, device: str, batch_tokens: int, reference: Reference
) -> tuple[list[dict[str, Any]], float]:
    """A row per sequence {"sequence", "tokens", "nll" (sum, nats)}, and tokens per second.

    Where a GPU's memory does not hold a batch, it and those after it are halved.
    """
    rows: list[dict[str, Any]] = []
    seconds = 0.0
    head, alike = Head(model, device), by_length(model.config)
    with tqdm(total=len(tokens.sequences), desc="evaluate", unit="sequence") as bar:
        while len(rows) < len(tokens.sequences):
            batch = next(batches(tokens.sequences[len(rows) :], batch_tokens, alike))
            if alike:
                forget(model)
            mark, sums = reference.mark(), None
            with contextlib.suppress(torch.OutOfMemoryError):
                sums, spent = judge(head, batch, device, reference)
            if sums is None:
                batch_tokens = halved(*batch.ids.shape)
                reference.back_to(mark)
                torch.cuda.empty_cache()
                continue
            seconds += spent
            for length, nll in zip(batch.lengths.tolist(), sums, strict=True):
                if not math.isfinite(nll):
                    raise InputError(
                        f"sequence {len(rows)}: its NLL is not finite; the checkpoint is broken (weights that "
                        "overflow?)"
                    )
                rows.append({"sequence": len(rows), "tokens": length - 1, "nll": nll})
            bar.update(len(sums))
    return rows, tokens.count / seconds
