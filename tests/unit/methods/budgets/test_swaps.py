"""A prediction takes its parts' measured damage."""

import numpy as np
import pytest

from quant.methods.budgets.swaps import LARGEST, corrected, parts_of

NAMES = [f"model.layers.{i}.{part}" for i in range(8) for part in ("self_attn.q_proj", "mlp.up_proj")]
LAYERS = {name: i // 2 for i, name in enumerate(NAMES)}


def test_parts_are_sections_of_the_depth_by_module() -> None:
    found = parts_of(LAYERS, 4)
    assert len(found) == 8 and sorted(name for part in found.values() for name in part) == sorted(NAMES)
    assert found["mlp, 1 of 4"] == ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]
    assert parts_of(LAYERS, 100).keys() == parts_of(LAYERS, 8).keys()


def test_a_law_that_holds_is_found() -> None:
    """Each part's own factor at each width, and damage of all that is a power of the sum."""
    rng = np.random.default_rng(0)
    costs = np.concatenate([rng.uniform(0.1, 1, (16, 2)) * [4, 1], np.zeros((16, 1))], axis=1)
    parts = parts_of(LAYERS, 4)
    factors = {(part, k): rng.uniform(0.5, 2) for part in parts for k in (0, 1)}
    real, rows = costs.copy(), {part: [NAMES.index(name) for name in names] for part, names in parts.items()}
    for (part, k), factor in factors.items():
        real[rows[part], k] *= factor
    swaps = {(part, k): float(real[rows[part], k].sum()) for part, k in factors}
    whole = {k: float(1.5 * real[:, k].sum() ** 0.9) for k in (0, 1)}
    found = corrected(costs, NAMES, parts, swaps, whole)
    np.testing.assert_allclose(found.costs, real)
    chosen = rng.integers(0, 3, 16)
    own = real[np.arange(16), chosen]
    assert found.of(chosen).sum() == pytest.approx(1.5 * own.sum() ** 0.9)
    np.testing.assert_allclose(found.of(chosen) / found.of(chosen).sum(), own / own.sum())
    assert (found.of(np.full(16, 2)) == 0).all()
    extreme = corrected(costs, NAMES, parts, dict.fromkeys(swaps, 1000000.0), {})
    assert set(extreme.factors.values()) == {LARGEST} and extreme.slope == 1
