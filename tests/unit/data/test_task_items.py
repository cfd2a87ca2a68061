"""Items of tasks: those made here, their token ids, and what is refused."""

from pathlib import Path

import pytest

from quant.data import embedded_tasks, task_items
from quant.data.overlap import fingerprints, seen_share
from quant.data.split import split_topics
from quant.data.task_items import Item, Request, Task
from quant.data.texts import reference_topics
from quant.errors import InputError
from quant.models.tokenization import tokenizers
from tests import tiny

FEW = ["argparse", "difflib", "inspect", "random", "statistics", "tarfile", "textwrap", "typing", "zipfile"]


@pytest.fixture
def few_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_tasks, "modules", lambda: FEW)
    embedded_tasks.passages.cache_clear()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"))


def check(name: str, items: list[Item]) -> None:
    """One item a text, right answers as the rule has them, choices that differ."""
    rule = embedded_tasks.RULES[name]
    assert len({item.text for item in items}) == len(items)
    for item in items:
        choices = [continuation for _, continuation in item.requests]
        assert len(set(choices)) == len(choices) == len(item.lengths) == (1 if rule.score == "greedy" else 4)
        assert all(one.startswith(" ") and not one[1:].startswith(" ") for one in choices)
        assert len({context for context, _ in item.requests}) == 1 and item.lengths == [len(c) - 1 for c in choices]
    if rule.score != "greedy":  # the right one stands anywhere
        assert {item.gold for item in items} == {0, 1, 2, 3}


@pytest.mark.usefixtures("few_modules")
@pytest.mark.parametrize("name", embedded_tasks.RULES)
def test_the_same_seed_draws_the_same_items(name: str) -> None:
    items = embedded_tasks.embedded(name, 40, 42)
    check(name, items)
    assert items == embedded_tasks.embedded(name, 40, 42)
    assert {item.text for item in items} != {item.text for item in embedded_tasks.embedded(name, 40, 7)}


@pytest.mark.usefixtures("few_modules")
def test_right_answers_are_the_texts_own() -> None:
    passages = embedded_tasks.passages()
    for item in embedded_tasks.embedded("last_word", 20, 0):
        assert any(passage.endswith(f"{item.text}.") for passage in passages)
    for item in embedded_tasks.embedded("continuation", 20, 0):
        assert any(passage.startswith(item.text) for passage in passages)
        assert len(item.requests[0][0].split()) == 24 and {len(c.split()) for _, c in item.requests} == {10}
    import importlib

    for item in embedded_tasks.embedded("module", 20, 0):
        name = item.requests[0][0].split(" This describes ")[1].split()[0]
        holds = [hasattr(importlib.import_module(choice.strip()), name) for _, choice in item.requests]
        assert holds[item.gold] and item.requests[item.gold][1].strip() not in item.requests[0][0].lower()


@pytest.mark.slow
def test_three_hundred_items_of_each_that_calibration_has_not_seen() -> None:
    """All of the standard library's modules; the calibration part of the language reference holds none of the text."""
    embedded_tasks.passages.cache_clear()
    topics = reference_topics()
    seen = fingerprints(topics[name] for name in split_topics(topics)["calibration"])
    for name in embedded_tasks.RULES:
        items = embedded_tasks.embedded(name, 300, 42)
        check(name, items)
        assert len(items) == 300 and seen_share([item.text for item in items], seen) < 0.01


def task(*items: Item, score: str = "acc") -> Task:
    return Task("mine", score, "a rule", list(items), {"spec": {}})


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    two = Item([("a b", " c"), ("a b", " d e")], 1, [1, 3])
    made = task(two, Item([("x", " y"), ("z", " y"), ("w", " y")], 2, [1, 1, 1]))
    task_items.save(tmp_path / "t.json", made)
    found = task_items.load(tmp_path / "t.json")
    assert found.items == made.items and found.chance == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found.fingerprint == made.fingerprint and two.text == "a b d e"
    assert task(two).fingerprint != task(two._replace(gold=0)).fingerprint != task(two, score="acc_norm").fingerprint
    assert task(two, score="greedy").chance == 0


def test_ids_behind_the_contexts_are_the_continuations(checkpoint: Path) -> None:
    """As lm-eval makes them, whose rule is: the whole's ids from the length of the context's own on."""
    tokenizer = tokenizers.load(checkpoint)
    asked = Item([("w1 w2  ", "w3 w4"), ("w1 w2", "  w3 w4"), ("w5", " w6")], 0, [5, 5, 2])
    (found,) = task_items.requests_of(task(asked), checkpoint)
    for (context, continuation), request in zip(asked.requests, found, strict=True):
        whole = tuple(tokenizer(context + continuation)["input_ids"])
        assert request.context + request.continuation == whole
        assert request.context == tuple(tokenizer(context.rstrip())["input_ids"])
    assert found[0] == found[1] and len(found[2].continuation) == 1


def test_an_empty_context_is_bos(checkpoint: Path) -> None:
    (found,) = task_items.requests_of(task(Item([("", "w1 w2")], 0, [5]), score="greedy"), checkpoint)
    assert found == [Request((tokenizers.load(checkpoint).bos_token_id,), (4, 5))]


def test_what_the_model_cannot_hold_is_refused(checkpoint: Path) -> None:
    words = " ".join(["w1"] * 512)
    task_items.requests_of(task(Item([(words, " w2")], 0, [2])), checkpoint)  # the last token is not read
    with pytest.raises(InputError, match=r"^tasks\.mine: item 1: has 514 tokens, the model was made for 512; shorten"):
        task_items.requests_of(task(Item([("w1", " w2")], 0, [2]), Item([(words, " w2 w3")], 0, [5])), checkpoint)
    with pytest.raises(InputError, match=r"^tasks\.mine: item 0: its continuation has no token"):
        task_items.requests_of(task(Item([("w1", " w2"), ("w1", " ")], 0, [2, 1])), checkpoint)


def test_a_score_that_a_task_has_not_is_refused() -> None:
    assert task_items.chosen_score("tasks.t", "auto", ["acc", "acc_norm"]) == "acc_norm"
    assert task_items.chosen_score("tasks.t", "acc", ["acc", "acc_norm"]) == "acc"
    with pytest.raises(InputError, match=r"^tasks\.t\.score: acc: it is scored by greedy; write one of them, or auto"):
        task_items.chosen_score("tasks.t", "acc", ["greedy"])
