"""Does the original model make sense on this text? A wrong tokenizer, a missing BOS or a broken conversion shows in two
numbers before anything is compared: its NLL against a unigram model's, and its tokens per character."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CLEARLY = 0.9  # of the unigram model's NLL; language models of any size have 0.3 to 0.7 of it
ALPHABET = 1000  # a vocabulary up to this size is of characters or bytes, one token each by design
# tokens a character that are usual of vocabularies of pieces: English 0.2 to 0.3, code and numbers up to 0.5; scripts
# without spaces or rare in training up to 2 (UTF-8 bytes of a character: 3)
USUAL = {"Latin": (0.05, 0.6), "other": (0.05, 2.5)}


class Sense(NamedTuple):
    """unigram_nll: nats per token; tokens_per_character; doubt: what is wrong and where to look, or nothing."""

    unigram_nll: float
    tokens_per_character: float
    doubt: str


def unigram_nll(sequences: Sequence[Tensor]) -> float:
    """Mean NLL of the predicted tokens, all but each sequence's first, by their frequencies; nats.

    Each token is left out of its own estimate, and half a count is added to every kind of token that occurs and to one
    that does not, so that a short text is no easier to a unigram model than a long one.
    """
    _, counts = torch.cat([ids[1:] for ids in sequences]).unique(return_counts=True)
    counts = counts.double()
    total = counts.sum()
    p = (counts - 0.5) / (total - 1 + 0.5 * (len(counts) + 1))
    return float(-(counts * torch.log(p)).sum() / total)


def judge(
    nll: float, sequences: Sequence[Tensor], vocabulary: int, characters: int | None, latin: bool = True
) -> Sense:
    """nll: of the original on the sequences; vocabulary: of the model; characters: that the sequences stand for."""
    by_chance = unigram_nll(sequences)
    rate = sum(map(len, sequences)) / characters if characters else math.nan
    doubts = []
    if not nll < CLEARLY * by_chance:
        doubts.append(
            f"its NLL of {nll:.2f} nats per token is no clear gain over {by_chance:.2f}, what the frequencies of the "
            "same tokens give alone"
        )
    low, high = USUAL["Latin" if latin else "other"]
    if vocabulary > ALPHABET and not math.isnan(rate) and not low <= rate <= high:
        doubts.append(f"its tokenizer gives {rate:.2f} tokens per character, where {low} to {high} are usual")
    return Sense(by_chance, rate, "; ".join(doubts))
