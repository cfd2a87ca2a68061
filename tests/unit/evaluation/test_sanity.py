"""An original that makes no sense is told from one that does, by two numbers."""

import math
from collections import Counter

import pytest
import torch

from quant.errors import InputError
from quant.evaluation.record import doubted
from quant.evaluation.sanity import judge, unigram_nll


def sequences(seed: int, vocabulary: int = 2000, n: int = 8) -> list[torch.Tensor]:
    """Ids by a Zipf law."""
    generator = torch.Generator().manual_seed(seed)
    weights = 1 / torch.arange(1, vocabulary + 1, dtype=torch.float64)
    return [torch.multinomial(weights, 64, replacement=True, generator=generator) for _ in range(n)]


def test_unigram_nll_equals_a_slow_one() -> None:
    found = sequences(0)
    predicted = [int(token) for ids in found for token in ids[1:]]
    counts, total = Counter(predicted), 0.0
    for i, token in enumerate(predicted):
        others = Counter(predicted[:i] + predicted[i + 1 :])
        total -= math.log((others[token] + 0.5) / (len(predicted) - 1 + 0.5 * (len(counts) + 1)))
    assert unigram_nll(found) == pytest.approx(total / len(predicted), rel=1e-12)


@pytest.mark.parametrize(
    ("nll", "rate", "words"),
    [
        (3.0, 0.25, []),
        (10.5, 0.25, ["no clear gain"]),
        (3.0, 0.98, ["0.98 tokens per character"]),
        (10.5, 0.98, ["no clear gain", "0.98 tokens per character"]),
        (3.0, 0.01, ["0.01 tokens per character"]),
    ],
)
def test_what_is_doubted(nll: float, rate: float, words: list[str]) -> None:
    found = sequences(1)
    sense = judge(nll, found, 32000, round(sum(map(len, found)) / rate))
    assert bool(sense.doubt) == bool(words) and all(word in sense.doubt for word in words)
    assert sense.tokens_per_character == pytest.approx(rate, rel=0.01)


def test_a_model_of_bytes_and_one_of_another_script_have_other_rates() -> None:
    found = sequences(2, vocabulary=256)
    characters = sum(map(len, found))
    assert judge(1.0, found, 256, characters).doubt == ""
    assert judge(1.0, found, 32000, characters).doubt and not judge(1.0, found, 32000, characters, latin=False).doubt


def test_barely_better_than_frequencies_is_no_clear_gain() -> None:
    found = sequences(3)
    least = unigram_nll(found)
    assert judge(0.95 * least, found, 32000, None).doubt and not judge(0.85 * least, found, 32000, None).doubt
    assert judge(math.nan, found, 32000, None).doubt


def test_a_doubt_stops_unless_it_was_told_to_go_on() -> None:
    with pytest.raises(InputError, match=r"m on d: .*why; look at its tokenizer.*implausible: continue") as caught:
        doubted("why", "m on d", "stop")
    assert "\n" not in str(caught.value)
    doubted("why", "m on d", "continue")
    doubted("", "m on d", "stop")
