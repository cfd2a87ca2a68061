"""What a rounding did to its weights."""

import torch

from quant.recipe.quantized import COUNTED, Counted, statistics_of


def test_quartiles_are_those_of_sorted_numbers() -> None:
    """Of several linears at once, of which one has no weights."""
    found, expected = [], []
    for n in (1, 4, 0, 7, 1000):
        drawn = torch.randint(0, 3000, (n,), generator=torch.Generator().manual_seed(n)).int()
        found.append((Counted.of(drawn, torch.full((4,), n / 4, dtype=torch.float64)), drawn.clone))
        ordered = sorted(drawn.tolist())
        places = [ordered[-(-q * n // 4) - 1] / 1000 for q in (1, 2, 3, 4)] if n else []
        expected.append([0.25] * len(COUNTED) + places if n else [])
    assert [list(each.values()) for each in statistics_of(found)] == expected
