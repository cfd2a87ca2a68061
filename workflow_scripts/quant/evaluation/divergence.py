"""KL divergence and top-1 agreement with the original, whose hidden states are kept.

A prediction's distribution has as many numbers as the vocabulary, its hidden state a hundredth of them: the head makes
the same distribution of it again. KL(original ‖ method) is in nats; both are taken over the first `kl_tokens`
predictions.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quant.evaluation.head import Head, Parts
from quant.files import tensorfile
from quant.files.artifacts import require

BLOCK = 8  # rows compared at a time on a CPU, whose caches then hold them: five times faster than 512
GPU_BLOCK = 512
PROBED = 4  # rows whose logits are kept too, to know the head by
WHOLE_BYTES = 2**28  # of log-probabilities in float16, where a model does not come apart
Keep = Callable[[int, Tensor], None]


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ p (log p - log q) [n] in float64 of log-probabilities [n, vocab]."""
    # a token that the original gives no probability adds nothing, whatever log_q says
    terms = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0)
    return terms.sum(-1, dtype=torch.float64)


def compare(original: Tensor, method: Tensor) -> tuple[Tensor, Tensor]:
    """KL [n] in float64 and whether the top-1 predictions agree [n], of logits [n, vocab]."""
    kl, agreed = [], []
    size = BLOCK if original.device.type == "cpu" else GPU_BLOCK
    for p, q in zip(original.split(size), method.split(size), strict=True):
        p, q = p.float(), q.float()
        kl.append(kl_divergence(torch.log_softmax(p, -1), torch.log_softmax(q, -1)))
        agreed.append(p.argmax(-1) == q.argmax(-1))
    return torch.cat(kl), torch.cat(agreed)


class Reference(NamedTuple):
    """The original's states of a sequence's first predictions, [n, …], by the sequence's index; and their logits."""

    states: Callable[[int], Tensor]
    logits: Callable[[Tensor], Tensor]


def budgeted(sequences: Sequence[Tensor], budget: int | None) -> list[int]:
    """How many predictions of each sequence are compared: all, or the first ones within the budget."""
    left, found = float("inf") if budget is None else budget, []
    for sequence in sequences:
        found.append(int(min(len(sequence) - 1, left)))
        left -= found[-1]
    return found


def whole_budget(head: Head, budget: int | None) -> int | None:
    """The budget, less where distributions must be kept themselves."""
    if head.parts is not Parts.WHOLE:
        return budget
    return min(max(1, WHOLE_BYTES // (2 * head.vocabulary)), budget or 2**62)


def _name(sequence: int) -> str:
    return f"states.{sequence:07d}"


def known(head: Head) -> str:
    """A checksum of the head's parameters as they are in memory, and where the model comes apart."""
    parameters = head.module.state_dict() if isinstance(head.module, torch.nn.Module) else {}
    marks = [f"{name} {tensorfile.checksum(tensorfile.raw(value.cpu()))}" for name, value in parameters.items()]
    return "; ".join([head.parts, str(head.dtype), *marks])


@contextlib.contextmanager
def keeping(path: str | Path, head: Head, counts: Sequence[int], made_from: dict[str, Any]) -> Iterator[Keep]:
    """Writes the states of each sequence's first counts[i] predictions as they come, and by what to know their head."""
    whole = head.parts is Parts.WHOLE
    dtype = torch.float16 if whole else head.dtype
    layout: tensorfile.Layout = {_name(i): (dtype, (n, head.width)) for i, n in enumerate(counts) if n}
    probed = next((i for i, n in enumerate(counts) if n), None)
    if probed is not None:
        layout["probe"] = (torch.float32, (min(PROBED, counts[probed]), head.vocabulary))
    metadata = {key: json.dumps(value) for key, value in (made_from | {"head": known(head)}).items()}
    with tensorfile.writing(path, layout, metadata) as out:

        def keep(sequence: int, states: Tensor) -> None:
            if not counts[sequence]:
                return
            states = states[: counts[sequence]]
            if sequence == probed:
                out.put("probe", head.logits(states[:PROBED]).float())
            out.put(_name(sequence), torch.log_softmax(states.float(), -1).half() if whole else states)

        yield keep


@contextlib.contextmanager
def reading(path: str | Path, head: Head, original: Callable[[], Head], **expected: Any) -> Iterator[Reference]:
    """What `keeping` wrote, refused when it belongs to other tokens or another model. The evaluated model's own head
    makes its logits where it is the original's; `original` loads that where it is not."""
    with tensorfile.opened(path) as file:
        require(path, {key: file.info(key) for key in expected}, **expected)
        probe = file.get("probe", head.device)

        def states(sequence: int) -> Tensor:
            name = _name(sequence)
            if name not in file.names:
                return torch.empty(0, device=head.device)
            return file.get(name, head.device, None if head.parts is Parts.WHOLE else head.dtype)

        def same() -> bool:
            probed = int(min(file.names - {"probe"}).rpartition(".")[2])
            found = head.logits(states(probed)[:PROBED]).float()
            slack = 4 * torch.finfo(head.dtype).eps * probe.abs().max().item()
            return torch.allclose(found, probe, rtol=0, atol=slack, equal_nan=True)

        if head.parts is Parts.WHOLE:
            yield Reference(states, torch.Tensor.float)
        elif file.info("head") == known(head) and same():
            yield Reference(states, head.logits)
        else:
            other = original()
            yield Reference(states, other.logits)


def join(paths: Sequence[str | Path], out: str | Path) -> None:
    """One file of what `keeping` wrote for shards of the sequences, in their order."""
    with contextlib.ExitStack() as files:
        parts = [files.enter_context(tensorfile.opened(path)) for path in paths]
        places = {name: part for part in reversed(parts) for name in part.layout()}  # the first one's probe
        layout = {name: part.layout()[name] for name, part in places.items()}
        metadata = {key: value for key, value in parts[0].metadata.items() if key != "checksums"}
        for part in parts[1:]:
            require(part.path, {"head": part.info("head")}, head=parts[0].info("head"))
        with tensorfile.writing(out, layout, metadata) as writer:
            for name in sorted(layout):
                writer.put(name, places[name].get(name))
