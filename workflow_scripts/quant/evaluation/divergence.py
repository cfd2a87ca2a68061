"""KL divergence and top-1 agreement with the original, whose log-probabilities are kept in float16.

KL(original ‖ method) is in nats; both are taken over the first `kl_tokens` predictions.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from quant.files import tensorfile
from quant.files.artifacts import require

CHUNK = 512  # rows of logits at a time, in float32, on a CPU


class Divergence(NamedTuple):
    """Mean KL in nats and share of equal top-1 predictions over `tokens` predictions."""

    kl: float
    top1_agreement: float
    tokens: int


def log_probabilities(logits: Tensor) -> Tensor:
    """[n, vocab] float32."""
    return torch.log_softmax(logits.float(), dim=-1)


def kl_divergence(reference: Tensor, log_q: Tensor) -> Tensor:
    """Σ p (log p - log q) [n], p renormalised from stored log-probabilities [n, vocab]."""
    log_p = torch.log_softmax(reference.float(), dim=-1)
    # a token that the original gives no probability adds nothing, whatever log_q says
    terms = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0)
    return terms.sum(-1, dtype=torch.float64)


class Reference:
    """The original's log-probabilities [tokens, vocab] in float16, collected or compared with."""

    def __init__(self, tokens: int, stored: Tensor | None) -> None:
        self.tokens, self.stored = tokens, stored
        self.kept: list[Tensor] = []
        self.done = self.agreed = 0
        self.kl = 0.0

    def see(self, logits: Tensor) -> None:
        logits = logits[: self.tokens - self.done]
        for part in logits.split(CHUNK):
            log_q = log_probabilities(part)
            if self.stored is None:
                self.kept.append(log_q.half().cpu())
            else:
                reference = self.stored[self.done : self.done + len(part)].to(part.device)
                self.kl += kl_divergence(reference, log_q).sum().item()
                self.agreed += int((reference.argmax(-1) == log_q.half().argmax(-1)).sum())
            self.done += len(part)

    def mark(self) -> tuple[int, int, int, float]:
        """Where it stands, for `back_to`."""
        return len(self.kept), self.done, self.agreed, self.kl

    def back_to(self, mark: tuple[int, int, int, float]) -> None:
        kept, self.done, self.agreed, self.kl = mark
        del self.kept[kept:]

    def divergence(self) -> Divergence:
        if self.stored is None:
            return Divergence(0.0, 1.0, self.done)
        return Divergence(self.kl / self.done, self.agreed / self.done, self.done)


def read_reference(path: Path, **expected: str) -> Tensor:
    """Stored log-probabilities, refused when they belong to other tokens or another model."""
    with tensorfile.opened(path) as file:
        require(path, {key: file.info(key) for key in expected}, **expected)
        return file.get("log_probabilities")
