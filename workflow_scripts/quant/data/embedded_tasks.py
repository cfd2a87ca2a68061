"""Tasks that need no hub: made from the standard library's own texts by rules, the same items for the same seed.

Passages are the paragraphs of prose in the held-out part of the Python language reference, then in the docstrings of
the standard library's modules; one item is made of each, so that items are independent.
"""

import ast
import functools
import importlib.util
import itertools
import logging
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from quant.data.split import split_topics
from quant.data.task_items import Item
from quant.data.texts import docstrings, reference_topics

logger = logging.getLogger("quant")

NOT_OURS = ("antigravity", "this", "test", "idlelib", "lib2to3", "turtledemo")  # no documentation, or not prose
CONTEXT, ENDING = 24, 10  # words of a continuation item
WORDS = 32  # before the last one, at most
CHOICES = 4
NEAR = 20  # passages that wrong endings come from: those nearest in the text, so that they are about the same


class Rule(NamedTuple):
    """How an embedded task is made: its items of a source of randomness, how they are scored, and in words."""

    items: Callable[[random.Random], list[Item]]
    score: str
    words: str


@functools.cache
def modules() -> list[str]:
    """The standard library's modules that have Python source, by name."""
    names = [name for name in sorted(sys.stdlib_module_names) if not name.startswith("_") and name not in NOT_OURS]
    return [name for name in names if source_of(name)]


def source_of(module: str) -> str:
    """The file of a module's source; nothing where it has none."""
    try:
        found = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return ""
    origin = (found and found.origin) or ""
    return origin if origin.endswith(".py") else ""


def prose(text: str) -> Iterator[str]:
    """A text's paragraphs that are whole sentences, each on one line."""
    for paragraph in re.split(r"\n\s*\n", text):
        line = " ".join(paragraph.split())
        letters = sum(character.isalpha() or character == " " for character in line)
        if re.match(r"[A-Z]", line) and line.endswith(".") and ">>>" not in line and letters >= 0.9 * len(line):
            yield line


@functools.cache
def passages() -> list[str]:
    """All different ones, in the order of their sources."""
    topics = reference_topics()
    texts = [topics[name] for name in split_topics(topics)["heldout"]]
    texts += [text for module in modules() for text in docstrings(module)]
    return list(dict.fromkeys(line for text in texts for line in prose(text)))


def last_words(drawn: random.Random) -> list[Item]:
    """As in LAMBADA: a passage of 16 words or more up to its last word, of four lower-case letters or more."""
    found = []
    for passage in passages():
        match = re.fullmatch(r"(.+) ([a-z]{4,})\.", passage)
        if match and len(words := match[1].split()) >= 15:
            found.append(Item([(" ".join(words[-WORDS:]), f" {match[2]}")], 0, [len(match[2])]))
    return found


def continuations(drawn: random.Random) -> list[Item]:
    """As in HellaSwag: the first words of a passage and four times as many words, the right ones and those that stand
    at the same place of passages near it."""
    begun = (tuple(passage.split()[: CONTEXT + ENDING]) for passage in passages())
    cut = list(dict.fromkeys(words for words in begun if len(words) == CONTEXT + ENDING))
    endings = [" ".join(words[CONTEXT:]) for words in cut]
    found = []
    for i, words in enumerate(cut):
        others = (
            endings[j] for j in sorted(range(len(cut)), key=lambda j: (abs(j - i), j)) if endings[j] != endings[i]
        )
        near = list(itertools.islice(dict.fromkeys(others), NEAR))  # passages may go on in the same words
        wrong = drawn.sample(near, min(CHOICES - 1, len(near)))
        found.append(choice(" ".join(words[:CONTEXT]), endings[i], wrong, drawn))
    return found


def symbols() -> dict[str, tuple[str, str]]:
    """Public functions and classes of the standard library by name: their module, and their docstring's first line.
    Left out are names that two modules have, and those whose name or line gives the module away."""
    found: list[tuple[str, str, str]] = []
    for module in modules():
        for node in ast.parse(Path(source_of(module)).read_bytes()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                line = (ast.get_docstring(node) or "").partition("\n")[0].strip()
                if 4 <= len(line.split()) <= 16:
                    found.append((node.name, module, line))
    counted = Counter(name for name, _, _ in found)
    return {
        name: (module, line)
        for name, module, line in found
        if counted[name] == 1 and module not in f"{name} {line}".lower() and name.lower() not in module
    }


def symbol_modules(drawn: random.Random) -> list[Item]:
    """Which of four modules a name of the standard library stands in."""
    known = symbols()
    names = sorted({module for module, _ in known.values()})
    found = []
    for name, (module, line) in sorted(known.items()):
        wrong = drawn.sample([other for other in names if other != module], CHOICES - 1)
        found.append(choice(f'"{line}" This describes {name} in the Python module', module, wrong, drawn))
    return found


def choice(context: str, right: str, wrong: list[str], drawn: random.Random) -> Item:
    """An item of different choices in drawn order."""
    choices = [right, *dict.fromkeys(one for one in wrong if one != right)]
    drawn.shuffle(choices)
    return Item([(context, f" {one}") for one in choices], choices.index(right), [len(one) for one in choices])


RULES = {
    "last_word": Rule(
        last_words,
        "greedy",
        f"the last word of a passage, of four letters or more, after up to {WORDS} words before it (as in LAMBADA)",
    ),
    "continuation": Rule(
        continuations,
        "acc",
        f"the {ENDING} words that follow the first {CONTEXT} of a passage, among those of three passages near it (as "
        "in HellaSwag)",
    ),
    "module": Rule(
        symbol_modules,
        "acc",
        "which of four modules of the standard library a function or class stands in, by its docstring's first line",
    ),
}


def embedded(name: str, n: int, seed: int) -> list[Item]:
    """n items of a rule (or all where they are fewer), drawn by seed."""
    drawn = random.Random(f"{name} {seed}")
    found = RULES[name].items(drawn)
    if len(found) < n:
        logger.info("%s: this Python's texts give %d items, fewer than %d", name, len(found), n)
    return drawn.sample(found, min(n, len(found)))
