"""What a rounding did to its weights."""

import torch

from quant.recipe.quantized import spread


def test_quartiles_are_those_of_sorted_numbers() -> None:
    for n in (1, 4, 7, 1000):
        drawn = torch.randint(0, 3000, (n,), generator=torch.Generator().manual_seed(n)).int()
        ordered = sorted(drawn.tolist())
        assert spread(drawn, torch.zeros(1))[0] == [*(ordered[-(-q * n // 4) - 1] for q in (1, 2, 3)), ordered[-1]]
