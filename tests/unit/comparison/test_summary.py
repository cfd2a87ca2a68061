"""summary.csv: its columns, and a recipe that comes back out of its cell."""

from dataclasses import fields

import pandas as pd
import pytest

from quant.comparison.summary import SummaryRow, recipes_of, summary_row, summary_table

TEXTS = {
    "calibrations": {"n8-s1": {"sequences": 5, "tokens": 55}},
    "datasets": {"d": {"sequences": 8, "tokens": 88, "seen_share": 0.25}},
}
DRAWN = {"n_calib": 8, "seed": 1}


def evaluation(method: str, nll: float, recipe: dict | None) -> dict:
    """8 sequences of 10 tokens, the nth of nll + n/100 a token."""
    return {
        **{"model": "m", "method": method, "dataset": "d", "protocol": "windows", "seq_len": 11, "kl_tokens": 9},
        **{"bits_per_weight": 4.0, "size_mb": 50.0 if recipe else 100.0, "linears_mb": 20.0 if recipe else 70.0},
        **{"embeddings_mb": 10.0, "head_mb": 10.0, "other_mb": 10.0, "kl": 0.1, "top1_agreement": 0.9},
        **{"tokens_per_s": 300.0, "quantize_s": 2.0, "storage": "packed", "storage_reason": None},
        **{"quantized_share": 0.8 if recipe else 0.0, "file_bits_per_weight": 6.0, "tensors": method},
        "sequences": [
            {"sequence": i, "tokens": 10, "nll": 10 * (nll * (1 + i / 100))}
            | {"kl_tokens": n, "kl": n * (0.1 + i / 100)}
            for i, n in enumerate((10, 10, 10, 10, 6, 0, 0, 0))
        ],
        "provenance": {"recipe": recipe, "seed": 1, "versions": {"torch": "2"}, "evaluated_tokens": "ab"},
    }


def test_a_row_has_every_column_and_the_recipe_comes_back() -> None:
    original, rtn = evaluation("original", 3.0, None), evaluation("rtn", 3.2, {"bits": 4, "clip": False} | DRAWN)
    table = summary_table([summary_row(one, original, TEXTS, 99, 0) for one in (original, rtn)])
    names = [one.name for one in fields(SummaryRow)]
    assert list(table) == [*names, "p_holm", "detectable"]
    assert recipes_of(table) == {"original": {}, "rtn": {"bits": 4, "clip": False} | DRAWN}
    assert pd.isna(table.p_holm[0]) and table.p_holm[1] < 0.05
    assert table.delta_nll[1] == pytest.approx(0.2 * (1 + 3.5 / 100)) and table.compression[1] == 2
    mean = (10 * (0.1 + 0.11 + 0.12 + 0.13) + 6 * 0.14) / 46  # the last three sequences are beyond the budget
    assert 0.09 < table.kl_low[1] < mean < table.kl_high[1] < 0.15
    assert list(table.seen_share) == [0.25, 0.25]
    assert pd.isna(table.calibration_sequences[0]) and table.calibration_sequences[1] == 5
    assert table.linears_compression[1] == 3.5 and table.tokens[1] == 80


def test_a_table_from_a_file_has_its_recipes_too(tmp_path) -> None:
    original = evaluation("original", 3.0, None)
    summary_table([summary_row(original, original, TEXTS, 99, 0)]).to_csv(tmp_path / "summary.csv", index=False)
    assert recipes_of(pd.read_csv(tmp_path / "summary.csv")) == {"original": {}}
