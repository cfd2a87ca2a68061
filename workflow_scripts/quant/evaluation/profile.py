"""Where a text's NLL sits: its sums by place in the sequence, and by how often the token stands in the text.

Both are binned by octaves: bin b holds 2^b to 2^(b+1) - 1 tokens of context, or so many times in the data set.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from quant.records.evaluation import Binned

DIGITS = 6  # of nats that are kept
Sums = dict[str, list[list[float]]]  # by "position" and "frequency": nats by sequence and bin


def octaves(values: np.ndarray) -> np.ndarray:
    """floor(log2) of integers from 1 up."""
    return np.frexp(values)[1] - 1


class Profile:
    """Sums of every sequence's NLL by bin; each sequence is added once, in any order."""

    def __init__(self, sequences: Sequence[Tensor]) -> None:
        counts = torch.bincount(torch.cat(list(sequences))).numpy()
        self.bins = {
            "position": [octaves(np.arange(1, len(one))) for one in sequences],
            "frequency": [octaves(counts[one[1:].numpy()]) for one in sequences],
        }
        self.sums = {
            by: np.zeros((len(places), 1 + max(int(one.max()) for one in places if len(one))))
            for by, places in self.bins.items()
        }

    def add(self, sequence: int, nll: Tensor) -> None:
        """nll [tokens - 1]: of every prediction, nats."""
        values = nll.cpu().numpy()
        for by, sums in self.sums.items():
            sums[sequence] = np.bincount(self.bins[by][sequence], values, sums.shape[1])

    def part(self, first: int, n: int) -> Sums:
        """Of so many sequences."""
        return {by: sums[first : first + n].round(DIGITS).tolist() for by, sums in self.sums.items()}

    def record(self, sums: Sums) -> dict[str, Binned]:
        """All sequences' sums, with how many predictions each is of."""
        return {
            by: {
                "tokens": [np.bincount(places, minlength=self.sums[by].shape[1]).tolist() for places in self.bins[by]],
                "nll": sums[by],
            }
            for by in self.bins
        }


def joined(parts: Sequence[Sums]) -> Sums:
    """Of all shards of a data set, in their order."""
    return {by: [row for part in parts for row in part[by]] for by in parts[0]}
