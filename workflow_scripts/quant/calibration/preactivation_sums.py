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

    def __init__(self, lengths: list[int], n_tokens: int = SAMPLE_TOKENS) -> None:
        """lengths: tokens of each sequence."""
        self._starts = torch.tensor([0, *lengths]).cumsum(0)
        total = int(self._starts[-1])
        drawn = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:n_tokens]
        self.positions = drawn.sort().values

    def rows(self, batch: Batch) -> Tensor:
        """The sampled ones among a batch's real tokens, by their row."""
        start, stop = self._starts[batch.first], self._starts[batch.first + len(batch.lengths)]
        return self.positions[(self.positions >= start) & (self.positions < stop)] - start


class Preactivations:
    """Range and sample of the rows of z [n, out]."""

    def __init__(self) -> None:
        self._low: Tensor | None = None
        self._high: Tensor | None = None
        self._sample: list[Tensor] = []

    def add(self, z: Tensor, rows: Tensor) -> None:
        """rows: those of z to keep."""
        low, high = z.amin(0), z.amax(0)
        self._low = low if self._low is None else torch.minimum(self._low, low)
        self._high = high if self._high is None else torch.maximum(self._high, high)
        self._sample.append(z[rows.to(z.device)].bfloat16().cpu())

    def results(self) -> dict[str, Tensor]:
        """z_min, z_max [out] in float32; sample [tokens, out] in bfloat16, so within 2⁻⁸ of z, relative."""
        assert self._low is not None and self._high is not None
        return {"z_min": self._low.cpu(), "z_max": self._high.cpu(), "sample": torch.cat(self._sample)}
