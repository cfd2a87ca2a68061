"""Perplexity of a checkpoint by plain transformers: loading it, and each sequence's NLL.

NLL is in nats per predicted token; a sequence of n tokens predicts n-1.
"""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from quant.checkpoints.loading import load
from quant.data.tokens import Batch, Tokens, batches
from quant.errors import InputError
from quant.evaluation.divergence import Keep, Reference, compare
from quant.evaluation.head import Head
from quant.files.artifacts import NO_ACCESS, NO_ROOM, rebuild
from quant.files.tensorfile import stored_at
from quant.models.structure.rotary import by_length, forget
from quant.records.evaluation import SequenceRow
from quant.runtime.compute import clock, halved, where_installed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@where_installed
def loss_kernels() -> ModuleType:
    """Fused kernels for GPUs, by Triton."""
    from quant.evaluation import loss_kernels

    return loss_kernels


def load_model(checkpoint: Path, device: str, dtype: torch.dtype) -> "PreTrainedModel":
    """The checkpoint, or a GGUF file, as any user would load it."""
    try:
        model = load(checkpoint, device, dtype)
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in (*NO_ROOM, *NO_ACCESS):
            raise  # says nothing of the checkpoint
        made = checkpoint if checkpoint.is_file() else stored_at(checkpoint / "model.safetensors")
        raise InputError(f"{checkpoint}: cannot be loaded ({str(error).splitlines()[0]}); {rebuild(made)}") from None
    with torch.inference_mode():  # packed weights are unpacked at the first forward pass; that is none of its speed
        model(torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    return model


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) in float64 of logits [n, vocab], targets [n] → [n]."""
    if logits.is_cuda and logits.stride(1) == 1 and (fused := loss_kernels()) is not None:
        return fused.token_nll(logits, targets).double()
    log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    return -log_p.gather(1, targets[:, None])[:, 0].double()


class Judged(NamedTuple):
    """Of a batch's sequences: rows of `measure`, the seconds without the comparison, and of the predictions their
    states and their NLL."""

    rows: list[SequenceRow]
    seconds: float
    states: Sequence[Tensor]
    nll: Sequence[Tensor]


def judge(head: Head, batch: Batch, first: int, reference: Reference | None) -> Judged:
    """first: index of the batch's first sequence."""
    device = head.device
    begun, comparing = clock(device), 0.0
    states = head.of(batch).flatten(0, 1)
    predicting = torch.arange(batch.ids.shape[1]) < batch.lengths[:, None] - 1
    places = predicting.flatten().nonzero()[:, 0]
    targets = batch.ids.flatten()[places + 1].to(device)
    states, n = states[places.to(device)], head.rows_at_once()
    nll = torch.empty(len(states), dtype=torch.float64, device=device)
    lengths = (batch.lengths - 1).tolist()
    known: list[Tensor] = []
    if reference is not None:
        known = [part for i in range(len(lengths)) if len(part := reference.states(first + i))]
    original = torch.cat(known) if known else states[:0]
    kl, agreed = (torch.zeros(len(original), dtype=torch.float64, device=device) for _ in range(2))
    for i, (some, wanted, found) in enumerate(zip(states.split(n), targets.split(n), nll.split(n), strict=True)):
        logits = head.logits(some)
        found.copy_(token_nll(logits, wanted))
        if reference is not None and len(part := original[i * n : (i + 1) * n]):
            paused, where = clock(device), slice(i * n, i * n + len(part))
            kl[where], agreed[where] = compare(reference.logits(part), logits[: len(part)])
            comparing += clock(device) - paused
    rows: list[SequenceRow] = [
        {"sequence": first + i, "tokens": length, "nll": one}
        for i, (length, one) in enumerate(zip(lengths, sums(nll, lengths), strict=True))
    ]
    if reference is not None:
        counts = [len(part) for part in known] + [0] * (len(rows) - len(known))
        for row, count, *both in zip(rows, counts, sums(kl, counts), sums(agreed, counts), strict=True):
            row |= {"kl_tokens": count, "kl": both[0], "agreed": int(both[1])}
    return Judged(rows, clock(device) - begun - comparing, states.split(lengths), nll.split(lengths))


def sums(values: Tensor, counts: list[int]) -> list[float]:
    """Of so many values each."""
    return torch.stack([part.sum() for part in values.split(counts)]).tolist()


def evaluate(
    model: "PreTrainedModel", tokens: Tokens, device: str, batch_tokens: int
) -> tuple[list[SequenceRow], float]:
    """`measure` of a model that is compared with nothing."""
    with torch.inference_mode():
        head = Head(model, device)
    return measure(head, tokens, batch_tokens)


@torch.inference_mode()
def measure(
    head: Head,
    tokens: Tokens,
    batch_tokens: int,
    reference: Reference | None = None,
    keep: Keep | None = None,
    first: int = 0,
    note: Keep | None = None,
) -> tuple[list[SequenceRow], float]:
    """A row per sequence {"sequence", "tokens", "nll" (sum, nats)}, and tokens per second. Beside a reference also
    "kl_tokens", the predictions compared, "kl" (sum, nats) and "agreed"; keep gets each sequence's states, note the NLL
    of its predictions. first: index of the first sequence.

    Where a GPU's memory does not hold a batch, it and those after it are halved.
    """
    rows: list[SequenceRow] = []
    seconds, alike = head.before_s, by_length(head.model.config)
    with tqdm(total=len(tokens.sequences), desc="evaluate", unit="sequence") as bar:
        while len(rows) < len(tokens.sequences):
            batch = next(batches(tokens.sequences[len(rows) :], batch_tokens, alike))._replace(first=len(rows))
            if alike:
                forget(head.model)
            judged = None
            with contextlib.suppress(torch.OutOfMemoryError):
                judged = judge(head, batch, first + len(rows), reference)
            if judged is None:
                batch_tokens = halved(*batch.ids.shape)
                torch.cuda.empty_cache()
                continue
            seconds += judged.seconds
            for row, states, nll in zip(judged.rows, judged.states, judged.nll, strict=True):
                if not math.isfinite(row["nll"]):
                    raise InputError(
                        f"sequence {row['sequence']}: its NLL is not finite; the checkpoint is broken (weights that "
                        "overflow?)"
                    )
                if keep is not None:
                    keep(row["sequence"], states)
                if note is not None:
                    note(row["sequence"], nll)
            rows += judged.rows
            bar.update(len(judged.rows))
    return rows, tokens.count / seconds
