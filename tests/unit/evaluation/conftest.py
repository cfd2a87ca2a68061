"""What evaluations are tested on: the tiny model, and sequences of unlike lengths."""

from pathlib import Path

import pytest
import torch
from torch import nn

from quant.data.tokens import Tokens, fingerprint
from quant.evaluation.perplexity import load_model


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> nn.Module:
    return load_model(tiny_checkpoint, "cpu", torch.float32)


@pytest.fixture(scope="module")
def ragged() -> Tokens:
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(0, 256, (length,), generator=generator) for length in (9, 4, 12, 12, 2, 7)]
    return Tokens(sequences, fingerprint(sequences), {})
