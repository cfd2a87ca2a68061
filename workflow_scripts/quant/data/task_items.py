"""A task as items: what a model is asked, which answer is right, and the token ids that ask it.

An item has a request for each choice, a context and the continuation whose likelihood is taken; a task of words has
one, whose continuation must be the greedy one. Neither knows a model: token ids come from `encoded`.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from quant.data.texts import Frame
from quant.errors import InputError
from quant.files.artifacts import digest, read_json, rebuild, versions, write_json
from quant.models.structure.positions import positions_of
from quant.models.tokenization import tokenizers

# which answer a model gives: the likeliest choice, the likeliest for its length in characters, or the greedy word
SCORES = ("acc", "acc_norm", "greedy")
LEAST = 8  # tokens of a context that is written on


class Item(NamedTuple):
    """requests: (context, continuation) of each choice; gold: the right one; lengths: characters of each choice as the
    task counts them, for acc_norm."""

    requests: list[tuple[str, str]]
    gold: int
    lengths: list[int]

    @property
    def text(self) -> str:
        """With its right answer."""
        return "".join(self.requests[self.gold])


class Task(NamedTuple):
    """Items, how they are scored (SCORES), the rule that made them in a sentence, and what they were made from."""

    name: str
    score: str
    rule: str
    items: list[Item]
    provenance: dict[str, Any]

    @property
    def chance(self) -> float:
        """Share of right answers of a model that guesses; of words it is about 0."""
        if self.score == "greedy":
            return 0.0
        return sum(1 / len(item.requests) for item in self.items) / len(self.items)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any item, and with how it is scored."""
        return digest(json.dumps([self.score, *self.items]).encode())


def chosen_score(what: str, wanted: str, possible: list[str]) -> str:
    """acc_norm where the task has it, or the one that is wanted; one that it has not is refused."""
    if wanted == "auto":
        return possible[-1]
    if wanted not in possible:
        raise InputError(f"{what}.score: {wanted}: it is scored by {' or '.join(possible)}; write one of them, or auto")
    return wanted


def save(path: str | Path, task: Task) -> None:
    provenance = task.provenance | {"fingerprint": task.fingerprint, "versions": versions()}
    items = [item._asdict() for item in task.items]
    write_json(path, task._asdict() | {"items": items, "provenance": provenance, "chance": task.chance})


def load(path: str | Path) -> Task:
    """What `save` wrote; refused where its items do not match their fingerprint."""
    found = read_json(path)
    items = [Item([(a, b) for a, b in one["requests"]], one["gold"], one["lengths"]) for one in found["items"]]
    task = Task(found["name"], found["score"], found["rule"], items, found["provenance"])
    if task.fingerprint != task.provenance["fingerprint"]:
        raise InputError(f"{path}: its items do not match their fingerprint; {rebuild(path)}")
    return task


class Request(NamedTuple):
    """Token ids of a context, one or more, and of the continuation that is asked for, one or more."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


def encoded(task: Task, tokenizer: Any, model_type: str, positions: int | None) -> list[list[Request]]:
    """Each item's requests as token ids, as lm-eval makes them: white space at a context's end belongs to the
    continuation, and the ids behind the context's own are the continuation's. BOS is put as the model's tokenizer puts
    it; an empty context is BOS, or EOS where there is none.

    positions: that the model was made for. An item that has more tokens, or no continuation, is refused.
    """
    before = Frame.of(tokenizer, model_type).before
    pairs = [moved(*request) for item in task.items for request in item.requests]
    contexts = plain(tokenizer, [context for context, _ in pairs])
    wholes = plain(tokenizer, [context + continuation for context, continuation in pairs])
    begin = before or [one for one in (tokenizer.bos_token_id, tokenizer.eos_token_id) if one is not None][:1]
    found = []
    for context, whole in zip(contexts, wholes, strict=True):
        found.append(Request((*(before if context else begin), *context), tuple(whole[len(context) :])))
    rows = iter(found)
    items = [[next(rows) for _ in item.requests] for item in task.items]
    for i, requests in enumerate(items):
        check_item(f"tasks.{task.name}: item {i}", requests, positions)
    return items


def requests_of(task: Task, checkpoint: Path) -> list[list[Request]]:
    """A task's items as token ids of a checkpoint's tokenizer; refused where the model cannot hold them."""
    config = read_json(checkpoint / "config.json")
    return encoded(task, tokenizers.load(checkpoint), config.get("model_type", ""), positions_of(config))


def prompts_of(task: Task, requests: list[list[Request]], n: int, room: int | None = None) -> list[list[int]]:
    """The contexts of a task's first n items, each cut on the left to the tokens of the shortest; refused where that is
    too short to write on. requests: the items as token ids; room: tokens of a context at most."""
    contexts = [of_item[0].context for of_item in requests[:n]]
    width = min(map(len, contexts))
    if width < LEAST:
        raise InputError(
            f"words.task: {task.name}: a context has {width} tokens, too few to write on (at least {LEAST}); name "
            "another task"
        )
    width = width if room is None else min(width, room)
    return [list(context[-width:]) for context in contexts]


def moved(context: str, continuation: str) -> tuple[str, str]:
    """White space at the context's end moved to the continuation."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def plain(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Ids without special tokens, whose names in a text are plain characters."""
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def check_item(what: str, requests: list[Request], positions: int | None) -> None:
    for context, continuation in requests:
        if not context or not continuation:
            part = "context" if continuation else "continuation"
            raise InputError(f"{what}: its {part} has no token; give every choice a text of its own")
        # the last token is predicted, and never read
        if positions is not None and len(context) + len(continuation) - 1 > positions:
            raise InputError(
                f"{what}: has {len(context) + len(continuation)} tokens, the model was made for {positions}; shorten "
                "the item, ask fewer examples before it (num_fewshot), or leave the task out of study.tasks"
            )
