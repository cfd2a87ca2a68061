"""Log likelihoods of continuations: in batches, with shared contexts, and as a forward pass of each alone says."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from quant.data.task_items import Item, Request
from quant.errors import InputError
from quant.evaluation import items as scoring
from quant.evaluation.head import Head
from quant.evaluation.perplexity import load_model
from quant.evaluation.tasks import answered
from tests import tiny


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Head:
    folder = tiny.save_model(tmp_path_factory.mktemp("model"))
    with torch.inference_mode():
        return Head(load_model(folder, "cpu", torch.float32), "cpu")


def asked(seed: int) -> list[list[Request]]:
    """Items of two to four choices of one to five tokens, after contexts of one to nine; some contexts differ."""
    drawn = random.Random(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(drawn.randrange(3, 200) for _ in range(n))

    found = []
    for i in range(20):
        context = ids(drawn.randint(1, 9))
        choices = 1 if i % 5 == 0 else drawn.randint(2, 4)
        contexts = [ids(3) for _ in range(choices)] if i % 7 == 0 else [context] * choices
        found.append([Request(one, ids(drawn.randint(1, 5))) for one in contexts])
    return found


def alone(model: Any, request: Request) -> tuple[float, bool]:
    """By one forward pass, in float64, token by token."""
    whole = torch.tensor([request.context + request.continuation])
    with torch.inference_mode():
        logits = model(whole, use_cache=False).logits[0].double()
    total, greedy = 0.0, True
    for i, token in enumerate(request.continuation):
        row = logits[len(request.context) + i - 1]
        total += float(row[token] - torch.logsumexp(row, 0))
        greedy &= int(row.argmax()) == token
    return total, greedy


@pytest.mark.parametrize(("batch_tokens", "share"), [(1, True), (40, True), (10_000, True), (40, False)])
def test_each_is_what_a_forward_pass_of_it_says(head: Head, batch_tokens: int, share: bool) -> None:
    items = asked(1)
    found = scoring.log_likelihoods(head, items, batch_tokens, share)
    for requests, likelihoods in zip(items, found, strict=True):
        for request, likelihood in zip(requests, likelihoods, strict=True):
            log_p, greedy = alone(head.model, request)
            assert likelihood.log_p == pytest.approx(log_p, abs=1e-4) and likelihood.greedy == greedy


def test_the_greedy_continuation_is_found(head: Head) -> None:
    ids = [5, 9, 11]
    with torch.inference_mode():
        for _ in range(4):
            ids.append(int(head.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    wrong = (*ids[3:6], (ids[6] + 1) % 200)
    items = [[Request((5, 9, 11), tuple(ids[3:])), Request((5, 9, 11), wrong)]]
    assert [one.greedy for one in scoring.log_likelihoods(head, items, 64)[0]] == [True, False]


def test_a_context_is_read_once_for_its_choices(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scoring.may_share(head, asked(1)[1])
    read: list[int] = []
    before = head.read
    monkeypatch.setattr(head, "read", lambda ids: (read.append(ids.numel()), before(ids))[1])
    requests = [Request(tuple(range(3, 23)), (30 + i, 40)) for i in range(4)]
    scoring.log_likelihoods(head, [requests] * 3, 1000)
    assert sum(read) == 19 + 3 * 19  # the first also for whether that may be


def test_a_model_whose_cache_says_something_else_reads_them_apart(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    items = asked(2)
    wanted = scoring.log_likelihoods(head, items, 50)
    before = head.behind
    monkeypatch.setattr(head, "behind", lambda kept, ids: 2 * before(kept, ids))
    found = scoring.log_likelihoods(head, items, 50)
    assert [[one.log_p for one in row] for row in found] == [
        [pytest.approx(one.log_p, abs=1e-4) for one in row] for row in wanted
    ]


def test_a_batch_that_a_gpu_does_not_hold_is_halved(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    items = asked(3)
    wanted = scoring.log_likelihoods(head, items, 1000)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for name in ("whole", "shared"):
        before = getattr(scoring, name)

        def small(head: Head, some: list[Any], before: Any = before) -> Any:
            if len(some) > 2:
                raise torch.OutOfMemoryError
            return before(head, some)

        monkeypatch.setattr(scoring, name, small)
    found = scoring.log_likelihoods(head, items, 1000)
    assert [[one.log_p for one in row] for row in found] == [
        [pytest.approx(one.log_p, abs=1e-4) for one in row] for row in wanted
    ]


def test_weights_that_overflow_are_said(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.save_model(tmp_path))
    with torch.inference_mode():
        model.lm_head.weight.mul_(float("inf"))
        broken = Head(model.eval(), "cpu")
        with pytest.raises(InputError, match=r"^item 0: a likelihood is not finite"):
            scoring.log_likelihoods(broken, asked(1)[:1], 64)


def test_answers_are_lm_evals() -> None:
    """The likeliest choice, or the likeliest for its characters; of words, whether they are the greedy ones."""
    found = [scoring.Likelihood(-4.0, False), scoring.Likelihood(-6.0, True), scoring.Likelihood(-5.0, False)]
    item = Item([("a", " bc"), ("a", " bcdef"), ("a", " b")], 1, [2, 5, 1])
    row = answered(item, found, "acc")
    assert (row["answer"], row["right"]) == (0, False) and row["log_p"] == [-4, -6, -5]
    assert row["right_log_p"] == pytest.approx(torch.log_softmax(torch.tensor([-4.0, -6, -5]), 0)[1].item(), abs=1e-6)
    row = answered(item, found, "acc_norm")
    assert (row["answer"], row["right"]) == (1, True)
    row = answered(Item([("a", " b")], 0, [1]), found[1:2], "greedy")
    assert (row["answer"], row["right"], row["right_log_p"]) == (1, True, -6)
    assert not answered(Item([("a", " b")], 0, [1]), found[:1], "greedy")["right"]
