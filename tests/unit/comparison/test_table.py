"""comparisons.csv: every pair by NLL and by KL, each measure corrected for its own pairs."""

import numpy as np

from quant.comparison.paired import holm, paired_difference
from quant.comparison.table import comparison_table
from quant.comparison.verdicts import contradictions, difference_of, difference_words, otherwise_words


def evaluation(method: str, nll: np.ndarray, tokens: np.ndarray, kl: np.ndarray, compared: np.ndarray) -> dict:
    """Sums over each sequence."""
    rows = [
        {"sequence": i, "tokens": int(w), "nll": float(x), "kl_tokens": int(n), "kl": float(k)}
        for i, (x, w, k, n) in enumerate(zip(nll, tokens, kl, compared, strict=True))
    ]
    return {"model": "m", "dataset": "d", "method": method, "sequences": rows}


TOKENS = np.full(20, 100)
# b is better than a by NLL and worse by KL, c is level with a
SHIFTS = {"a": (0.0, 0.0), "b": (-0.1, 0.05), "c": (0.0, 0.0)}


def made(compared: np.ndarray) -> dict[str, dict]:
    rng = np.random.default_rng(0)
    return {
        name: evaluation(
            name, rng.normal(3 + nll, 0.01, 20) * TOKENS, TOKENS, rng.gamma(9, (0.1 + kl) / 9, 20) * compared, compared
        )
        for name, (nll, kl) in SHIFTS.items()
    }


def column(one: dict, name: str) -> np.ndarray:
    return np.array([row[name] for row in one["sequences"]], float)


def test_the_table_has_every_pair_corrected_for_all_of_a_measure() -> None:
    found = made(TOKENS)
    table = comparison_table([found] * 2, 999, 0)
    assert list(zip(table.method_a, table.method_b, strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")] * 2
    np.testing.assert_allclose(table.p_holm, holm(table.p))
    np.testing.assert_allclose(table.p_holm_kl, holm(table.p_kl))
    assert (table.p_holm[[0, 2]] < 0.05).all() and table.p_holm[1] > 0.05
    assert list(table.sequences) == list(table.kl_sequences) == [20] * 6
    for name, ends in (("nll", "delta_nll"), ("kl", "delta_kl")):
        alone = paired_difference(
            *(column(found[method], name) for method in "ab"), TOKENS.astype(float), 200 * 6, 0
        )  # more resamples for more comparisons
        suffix = "" if name == "nll" else "_kl"
        assert table[f"p{suffix}"][0] == alone.p and table[f"{ends}_low"][0] == alone.low
        assert table[ends][0] == alone.mean and table[f"error{suffix}"][0] == alone.error
    assert comparison_table([{"a": found["a"]}], 999, 0).empty


def test_kl_rests_on_the_sequences_that_were_compared() -> None:
    """A budget of 1,030 tokens: ten sequences and a part of one."""
    compared = np.array([100] * 10 + [30] + [0] * 9)
    found = made(compared)
    row = next(comparison_table([found], 999, 0).itertuples())
    a, b = (column(found[name], "kl")[:11] for name in "ab")
    alone = paired_difference(a, b, compared[:11].astype(float), 999, 0)
    assert row.kl_sequences == 11 and row.sequences == 20
    assert (row.delta_kl, row.delta_kl_low, row.p_kl) == (alone.mean, alone.low, alone.p)


def test_better_by_one_measure_and_worse_by_the_other_is_said() -> None:
    table = comparison_table([made(TOKENS)], 999, 0)
    nll, kl = (difference_of(next(table.itertuples()), by) for by in ("nll", "kl"))
    assert (nll.outcome, kl.outcome) == ("worse", "better")
    assert difference_words("a", "b", kl).startswith("a is better than b (delta_kl −0.")
    assert otherwise_words(nll, kl).startswith("; by KL it is better (delta_kl −0.")
    assert otherwise_words(nll, nll) == otherwise_words(nll, None) == ""
    lines = contradictions(table)
    assert lines[0].startswith("Better by NLL, worse by KL, in ") and "b against a" in lines[0]
    assert contradictions(table.drop(columns=[name for name in table if "kl" in name])) == []
