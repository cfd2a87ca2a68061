"""Paragraphs."""

import random
import re

WORDS = [f"word{i}" for i in range(500)]


def prose(n: int, seed: int, words: int = 40) -> list[str]:
    """So many different paragraphs, hard-wrapped."""
    draw = random.Random(seed)
    return [re.sub(r"((?:\S+ ){9}\S+) ", r"\1\n", " ".join(draw.choices(WORDS, k=words))) for _ in range(n)]
