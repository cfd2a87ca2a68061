"""Where damage sits: rates by octave, and one part of a text against the rest."""

from typing import Any

import numpy as np
import pytest

from quant.comparison import profiles
from quant.comparison.numbers import LEVEL
from quant.comparison.paired import holm, paired_differences

N = 32


def evaluation(method: str, tokens: np.ndarray, nll: np.ndarray) -> dict[str, Any]:
    """Of both kinds of bin alike; tokens, nll [sequences, bins]."""
    one = {"tokens": tokens.astype(int).tolist(), "nll": nll.tolist()}
    return {"method": method, "profile": {"position": one, "frequency": one}}


def drawn(rng: np.random.Generator, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of N sequences of 255, and their rise at that rate by bin: skewed, and of each sequence a level of its
    own."""
    tokens = rng.multinomial(255, [0.1, 0.2, 0.2, 0.3, 0.2], N).astype(float)
    level = rng.gamma(4, 0.25, (N, 1))
    return tokens, level * rates * tokens + (rng.gamma(0.5, 2, tokens.shape) - 1) * 0.3 * np.sqrt(tokens)


@pytest.mark.parametrize(
    ("tokens", "cut"),
    [([50, 20, 30], 1), ([10, 10, 10, 40, 30], 3), ([0, 90, 10], 2), ([0, 0, 7], 0), ([5], 0), ([1, 99], 1)],
)
def test_the_cut_is_as_near_to_half_as_bins_allow(tokens: list[int], cut: int) -> None:
    assert profiles.half(np.array(tokens)) == cut


def halves(rng: np.random.Generator, rates: list[float]) -> tuple[np.ndarray, ...]:
    """The first three bins' sums and tokens, and those of the others."""
    tokens, rise = drawn(rng, np.array(rates))
    return rise[:, :3].sum(1), tokens[:, :3].sum(1), rise[:, 3:].sum(1), tokens[:, 3:].sum(1)


def test_a_contrast_is_a_difference_of_rates_with_the_jackknifes_error() -> None:
    parts = halves(np.random.default_rng(0), [3, 2, 1, 1, 1])
    found = paired_differences(profiles.shares(*parts)[None], np.ones(N), 999, 0)[0]

    def difference(parts: list[np.ndarray]) -> float:
        a, v, b, w = (each.sum() for each in parts)
        return float(a / v - b / w)

    left = np.array([difference([np.delete(each, i) for each in parts]) for i in range(N)])
    assert found.mean == pytest.approx(difference(list(parts)))
    assert found.error == pytest.approx(np.sqrt((N - 1) / N * ((left - left.mean()) ** 2).sum()), rel=0.05)
    assert found.low < found.mean < found.high


def test_damage_that_is_even_is_rarely_said_to_be_uneven() -> None:
    """Three methods, two kinds of bin: of 200 reports at most 5 % claim anything; and what is uneven is shown."""
    rng = np.random.default_rng(1)
    even = np.stack([profiles.shares(*halves(rng, [1, 1, 1, 1, 1])) for _ in range(200 * 6)])
    p = np.array([one.p for one in paired_differences(even, np.ones(N), 499, 0)]).reshape(200, 6)
    assert np.mean([holm(report.tolist()).min() <= LEVEL for report in p]) <= 0.05
    uneven = np.stack([profiles.shares(*halves(rng, [1.5, 1.5, 1.5, 1, 1])) for _ in range(100)])
    assert np.mean([6 * one.p <= LEVEL for one in paired_differences(uneven, np.ones(N), 499, 0)]) >= 0.8


def test_tables_have_every_octave_and_both_parts() -> None:
    rng = np.random.default_rng(2)
    tokens, rise = drawn(rng, np.array([4.0, 4, 1, 1, 1]))
    before = tokens * 3.0
    group = {
        "original": evaluation("original", tokens, before),
        "a": evaluation("a", tokens, before + rise),
        "b": evaluation("b", tokens, before),
    }
    table, contrasts = profiles.profile_tables({("m", "d"): group}, 999, 0)
    assert len(table) == 2 * 2 * 5 and len(contrasts) == 2 * 2
    row = table[(table.method == "a") & (table.by == "position")].iloc[1]
    assert (row["first"], row["last"], row.tokens) == (2, 3, tokens[:, 1].sum())
    assert row.delta_nll == pytest.approx(rise[:, 1].sum() / tokens[:, 1].sum())
    assert row.nll == pytest.approx(3 + row.delta_nll) and row.delta_nll_low < row.delta_nll < row.delta_nll_high
    by = contrasts.set_index(["method", "by"])
    rare, late = by.loc[("a", "frequency")], by.loc[("a", "position")]
    assert profiles.shown(rare) == "larger" and profiles.shown(late) == "smaller"
    assert rare.part == "tokens that stand in the text at most 7 times" and late.part == "after 8 tokens or more"
    assert rare.share + late.share == pytest.approx(1) and rare.damage_share + late.damage_share == pytest.approx(1)
    assert profiles.shown(by.loc[("b", "position")]) == "none" and by.loc[("b", "position")].p == 1
    assert np.isnan(by.loc[("b", "position")].damage_share)


def test_only_damage_that_is_shown_is_shared() -> None:
    """Of noise about 0 shares came out as −4,249 %; a rise that is larger than its noise has shares that sum to 1."""
    rng = np.random.default_rng(3)
    tokens = rng.multinomial(255, [0.1, 0.2, 0.2, 0.3, 0.2], N).astype(float)
    before, noise = tokens * 3.0, rng.normal(0, 1, tokens.shape) * np.sqrt(tokens)
    noise -= tokens * (noise.sum() / tokens.sum())
    group = {
        "original": evaluation("original", tokens, before),
        "none": evaluation("none", tokens, before + noise + 1e-4 * tokens),
        "some": evaluation("some", tokens, before + noise + 0.1 * tokens),
        "less": evaluation("less", tokens, before + noise - 0.1 * tokens),
    }
    _, contrasts = profiles.profile_tables({("m", "d"): group}, 999, 0)
    found = contrasts.set_index(["method", "by"]).damage_share
    assert found["some"].sum() == pytest.approx(1) and found["some"].between(0, 1).all()
    assert found[["none", "less"]].isna().all()
    assert not (contrasts.delta_nll[contrasts.method == "none"] == 0).any()


def test_where_all_stand_in_one_octave_nothing_is_compared() -> None:
    tokens = np.full((N, 1), 1.0)
    group = {name: evaluation(name, tokens, tokens) for name in ("original", "a")}
    table, contrasts = profiles.profile_tables({("m", "d"): group}, 99, 0)
    assert len(table) == 2 and contrasts.empty and {"p_holm", "detectable"} <= set(contrasts)
    assert profiles.profile_tables({("m", "d"): {"original": group["original"]}}, 99, 0)[0].empty
