"""What the calibration pass keeps of pre-activations z = Wx + b: each channel's range, and z itself at a few tokens."""

import torch
from torch import Tensor

from quant.data.tokens import Batch

# 2 bytes × 256 tokens for each output channel: 80 MB for SmolLM2-135M, a fifth of its second moments
SAMPLE_TOKENS = 256


class TokenSample:
    """Which of all calibration tokens are sampled: up to 256, drawn without replacement, the same for every linear.

    A fixed stride would meet the same places of every window, the first token's outliers among them or never.
    """

    def __init__(self, lengths: list[int], n_tokens: int = SAMPLE_TOKENS, first: int = 0) -> None:
        """lengths: tokens of each sequence; first: the sequence that a pass over some of them begins with."""
        self._first = first
        self._starts = torch.tensor([0, *lengths]).cumsum(0)
        total = int(self._starts[-1])
        drawn = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:n_tokens]
        self.positions = drawn.sort().values

    def rows(self, batch: Batch) -> Tensor:
        """The sampled ones among a batch's real tokens, by their row."""
        first = self._first + batch.first
        start, stop = self._starts[first], self._starts[first + len(batch.lengths)]
        return self.positions[(self.positions >= start) & (self.positions < stop)] - start


class Preactivations:
    """Range and sample of the rows of z [n, out]."""

    def __init__(self) -> None:
        self._low: Tensor | None = None
        self._high: Tensor | None = None
        self._sample: list[Tensor] = []

    def add(self, z: Tensor, rows: Tensor) -> None:
        """z in any float type; rows: those of z to keep."""
        self.merge(z.amin(0).float(), z.amax(0).float(), z[rows.to(z.device)].bfloat16().cpu())

    def merge(self, low: Tensor, high: Tensor, sample: Tensor) -> None:
        """Of tokens that come after those it has."""
        self._low = low if self._low is None else torch.minimum(self._low, low)
        self._high = high if self._high is None else torch.maximum(self._high, high)
        self._sample.append(sample)

    def cut(self, n: int) -> None:
        """Keeps the first n sampled tokens only."""
        self._sample = [torch.cat(self._sample)[:n]]

    def results(self) -> dict[str, Tensor]:
        """z_min, z_max [out] in float32; sample [tokens, out] in bfloat16, so within 2⁻⁸ of z, relative."""
        assert self._low is not None and self._high is not None
        return {"z_min": self._low.cpu(), "z_max": self._high.cpu(), "sample": torch.cat(self._sample)}
