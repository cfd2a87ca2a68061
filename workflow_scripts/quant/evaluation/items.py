"""Log likelihoods of continuations, in batches by length; a context that several choices share is read once."""

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from quant.data.task_items import Request
from quant.errors import InputError
from quant.evaluation.head import Head, Parts
from quant.evaluation.perplexity import token_nll
from quant.models.structure.rotary import by_length, forget
from quant.runtime.compute import halved

logger = logging.getLogger("quant")

ALIKE = 1e-3  # nats that a shared context may differ by from one read for each choice


class Likelihood(NamedTuple):
    """log p of a continuation in nats, and whether it is the greedy one."""

    log_p: float
    greedy: bool


def judged(head: Head, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log p [n] in float64 and whether it is the likeliest [n] of targets [n], by states [n, …] that predict them."""
    n = head.rows_at_once()
    log_p, greedy = [], []
    for some, wanted in zip(states.split(n), targets.split(n), strict=True):
        logits = head.logits(some)
        log_p.append(-token_nll(logits, wanted))
        greedy.append(logits.argmax(-1) == wanted)
    return torch.cat(log_p), torch.cat(greedy)


def gathered(log_p: Tensor, greedy: Tensor, lengths: Sequence[int]) -> list[Likelihood]:
    """Of continuations of so many tokens each."""
    sums = torch.stack([part.sum() for part in log_p.split(list(lengths))]).tolist()
    return [Likelihood(one, bool(part.all())) for one, part in zip(sums, greedy.split(list(lengths)), strict=True)]


def whole(head: Head, requests: Sequence[Request]) -> list[Likelihood]:
    """Of requests that are one batch, each read whole."""
    ids = [torch.tensor(context + continuation) for context, continuation in requests]
    batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)[:, :-1].to(head.device)
    states = head.states(batch)
    rows = [states[i, len(r.context) - 1 : len(r.context) + len(r.continuation) - 1] for i, r in enumerate(requests)]
    targets = torch.tensor([token for request in requests for token in request.continuation], device=head.device)
    return gathered(*judged(head, torch.cat(rows), targets), [len(request.continuation) for request in requests])


def shared(head: Head, items: Sequence[Sequence[Request]]) -> list[list[Likelihood]]:
    """Of items with as many choices each, whose contexts, one an item, have one length of two tokens or more."""
    choices = len(items[0])
    contexts = torch.tensor([requests[0].context for requests in items], device=head.device)
    kept = head.read(contexts[:, :-1])
    kept.batch_repeat_interleave(choices)
    flat = [request for requests in items for request in requests]
    ids = [torch.tensor((context[-1], *continuation[:-1])) for context, continuation in flat]
    states = head.behind(kept, torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(head.device))
    rows = torch.cat([states[i, : len(one)] for i, one in enumerate(ids)])
    targets = torch.tensor([token for request in flat for token in request.continuation], device=head.device)
    found = gathered(*judged(head, rows, targets), list(map(len, ids)))
    return [found[i : i + choices] for i in range(0, len(found), choices)]


def may_share(head: Head, requests: Sequence[Request]) -> bool:
    """Whether reading this item's context once gives what reading it for each choice gives."""
    if head.parts is not Parts.BODY or by_length(head.model.config):
        return False
    apart = [whole(head, [request])[0].log_p for request in requests]
    try:
        found = [one.log_p for one in shared(head, [requests])[0]]
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False
    # of half precision, what its own rounding moves
    slack = max(ALIKE, 4 * torch.finfo(head.dtype).eps * max(map(abs, apart)))
    return max(abs(a - b) for a, b in zip(apart, found, strict=True)) <= slack


def one_context(requests: Sequence[Request]) -> bool:
    return len(requests) > 1 and len({r.context for r in requests}) == 1 and len(requests[0].context) > 1


def length(request: Request) -> int:
    """Tokens that are read: all but the last."""
    return len(request.context) + len(request.continuation) - 1


def shape(requests: Sequence[Request]) -> tuple[int, int, int]:
    """Of an item that is read with others: tokens of its context, its choices, tokens of the longest of them."""
    return len(requests[0].context), len(requests), max(len(request.continuation) for request in requests)


def in_batches(
    whole_list: Sequence[Any],
    room: int,
    cut: Callable[[Sequence[Any], int], tuple[int, int]],
    work: Callable[[Sequence[Any]], list[Any]],
) -> list[Any]:
    """work's results for all, in order; cut: how many of the next ones go together in so many tokens, and the width of
    each. Where a GPU's memory does not hold a batch, it and those after it are halved."""
    done: list[Any] = []
    with tqdm(total=len(whole_list), desc="items", unit="item") as bar:
        while len(done) < len(whole_list):
            left, found = whole_list[len(done) :], None
            n, width = cut(left, room)
            with contextlib.suppress(torch.OutOfMemoryError):
                found = work(left[:n])
            if found is None:
                room = halved(n, width)
                torch.cuda.empty_cache()
                continue
            done += found
            bar.update(n)
    return done


def share_of(left: Sequence[Sequence[Request]], room: int) -> tuple[int, int]:
    """Of items of which those alike stand together, the longest first."""
    context, choices, longest = shape(left[0])
    width = max(context, choices * longest)
    alike = next((k for k, one in enumerate(left) if shape(one)[:2] != (context, choices)), len(left))
    return min(alike, max(1, room // width)), width


@torch.inference_mode()
def log_likelihoods(
    head: Head, items: Sequence[Sequence[Request]], batch_tokens: int, share: bool = True
) -> list[list[Likelihood]]:
    """Of each request of each item; share: whether a context is read once for its choices, where the model can."""
    sharing = [i for i, requests in enumerate(items) if share and one_context(requests)]
    if sharing and not may_share(head, items[sharing[0]]):
        logger.info("%s: contexts are read for each choice", type(head.model).__name__)
        sharing = []
    sharing.sort(key=lambda i: shape(items[i]), reverse=True)  # what is too large shows at once
    together = in_batches([items[i] for i in sharing], batch_tokens, share_of, partial(shared, head))
    found = dict(zip(sharing, together, strict=True))
    places = [(i, j) for i in range(len(items)) if i not in found for j in range(len(items[i]))]
    places.sort(key=lambda place: length(items[place[0]][place[1]]), reverse=True)
    alike = by_length(head.model.config)

    def cut(left: Sequence[Request], room: int) -> tuple[int, int]:
        width = length(left[0])
        same = next((k for k, one in enumerate(left) if length(one) != width), len(left)) if alike else len(left)
        return min(same, max(1, room // width)), width

    def work(requests: Sequence[Request]) -> list[Likelihood]:
        if alike:
            forget(head.model)
        return whole(head, requests)

    apart = in_batches([items[i][j] for i, j in places], batch_tokens, cut, work)
    by_place = dict(zip(places, apart, strict=True))
    rows = [found[i] if i in found else [by_place[i, j] for j in range(len(items[i]))] for i in range(len(items))]
    for i, row in enumerate(rows):
        if not all(math.isfinite(one.log_p) for one in row):
            raise InputError(f"item {i}: a likelihood is not finite; the checkpoint is broken (weights that overflow?)")
    return rows
