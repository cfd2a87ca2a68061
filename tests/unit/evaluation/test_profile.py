"""A text's NLL by place and by frequency, against counting token by token."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from quant.data.tokens import Tokens
from quant.evaluation.head import Head
from quant.evaluation.perplexity import measure
from quant.evaluation.profile import Profile, joined, octaves


def test_octaves_begin_at_powers_of_two() -> None:
    values = np.arange(1, 5000)
    assert octaves(values).tolist() == [int(math.log2(value)) for value in values]
    assert octaves(2 ** np.arange(40)).tolist() == list(range(40))


def test_sums_are_those_of_a_loop(ragged: Tokens) -> None:
    generator = torch.Generator().manual_seed(1)
    nll = [torch.rand(len(one) - 1, generator=generator, dtype=torch.float64) * 9 for one in ragged.sequences]
    profile = Profile(ragged.sequences)
    for i in reversed(range(len(nll))):
        profile.add(i, nll[i])
    found = profile.record(joined([profile.part(0, 2), profile.part(2, len(nll) - 2)]))
    counts = Counter(torch.cat(ragged.sequences).tolist())
    for i, sequence in enumerate(ragged.sequences):
        for by in ("position", "frequency"):
            tokens, sums = Counter[int](), Counter[int]()
            for place, token in enumerate(sequence.tolist()[1:], 1):
                octave = int(math.log2(place if by == "position" else counts[token]))
                tokens[octave] += 1
                sums[octave] += float(nll[i][place - 1])
            bins = range(len(found[by]["tokens"][i]))
            assert found[by]["tokens"][i] == [tokens[b] for b in bins]
            assert found[by]["nll"][i] == pytest.approx([sums[b] for b in bins], abs=1e-6)


def test_all_of_a_sequences_nll_is_in_its_bins(model: nn.Module, ragged: Tokens) -> None:
    profile = Profile(ragged.sequences)
    rows, _ = measure(Head(model, "cpu"), ragged, 25, note=profile.add)
    for binned in profile.record(profile.part(0, len(rows))).values():
        assert [sum(row) for row in binned["nll"]] == pytest.approx([row["nll"] for row in rows], abs=1e-4)
        assert [sum(row) for row in binned["tokens"]] == [row["tokens"] for row in rows]
