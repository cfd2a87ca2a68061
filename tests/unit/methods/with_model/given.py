"""What recipes that run the model are given, and the slow reference of what they tune by."""

from pathlib import Path

import torch
from torch import nn

from quant.data.tokens import Tokens, fingerprint
from tests.unit import reference
from tests.unit.recipe.folded import Case

SEQUENCES = [torch.randint(3, 256, (n,), generator=torch.Generator().manual_seed(0)) for n in (12, 20, 30)]
CALIBRATION = Tokens(SEQUENCES, fingerprint(SEQUENCES), {})


def loaded(path: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


TUNE = {"epochs": 2, "rate": 0.01, "batch": 2, "held_out": 0.3}


def slow_divergence(case: Case, quantised: Path) -> float:
    """Mean KL over every token of the calibration text, two plain models run whole."""
    after, total = loaded(quantised), 0.0
    with torch.inference_mode():
        for ids in SEQUENCES:
            p, q = (each(ids[None], use_cache=False).logits[0].double().numpy() for each in (case.model, after))
            total += sum(reference.kl(p, q))
    return total / sum(map(len, SEQUENCES))
