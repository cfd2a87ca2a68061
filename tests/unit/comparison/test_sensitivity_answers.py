"""Which parts suffer, and which gain from a zero point: said only of what is shown."""

import math
from typing import Any

import pandas as pd
import pytest

from quant.comparison.answers import NO_DIFFERENCE, Answered
from tests.unit.comparison.studies import BY_ANCHOR, answers, evidence
from tests.unit.workflow.configurations import configured

Part = tuple[str, float, float]  # name, nats per token, corrected p


def part_rows(parts: list[Part], against: str = "original", by: str = "kind") -> list[dict[str, Any]]:
    """Rows of sensitivity.csv of rtn_g."""
    names = {"model": "m", "dataset": "python_reference", "by": by, "method": "rtn_g", "against": against}
    return [
        {**names, "part": part, "rows": 4, "weights": 10**6, "delta_nll": delta, "delta_nll_low": delta - 0.01,
         "delta_nll_high": delta + 0.01, "sequences": 32, "p": p / 2, "p_holm": p, "detectable": 0.02}
        for part, delta, p in parts
    ]  # fmt: skip


def answered(*rows: list[dict[str, Any]]) -> Answered:
    found = evidence(configured(BY_ANCHOR["sensitivity"].yaml))
    return answers(found._replace(sensitivity=pd.DataFrame([row for some in rows for row in some])))["sensitivity"]


def test_the_part_of_the_largest_loss_that_is_shown_suffers_most() -> None:
    one = answered(part_rows([("up_proj", 0.01, 0.03), ("v_proj", 0.03, 0.001), ("k_proj", 0.0, 1.0)]))
    assert one.outcome == "described" and one.verdict == (
        "Quantised alone by rtn_g, 2 of 3 kinds of linear are shown to suffer, v_proj the most: NLL +0.0300 [+0.0200, "
        "+0.0400], p 0.001, 75 % of the sum over all; it holds 1.0 million weights, 33 % of all"
    )
    assert [row["first"] for row in one.pairs] == ["v_proj", "up_proj", "k_proj"]


def test_a_larger_number_that_is_not_shown_does_not_suffer_most() -> None:
    one = answered(part_rows([("up_proj", 0.01, 0.03), ("v_proj", 0.03, 0.18)]))
    assert "1 of 2 kinds of linear is shown to suffer, up_proj the most: NLL +0.0100" in one.verdict
    assert "25 % of the sum" in one.verdict


@pytest.mark.parametrize(
    ("parts", "largest"),
    [
        ([("up_proj", 0.001, 1.0), ("v_proj", 0.002, 0.18)], "v_proj's +0.0020 [−0.0080, +0.0120], p 0.18"),
        ([("up_proj", -0.04, 0.01), ("v_proj", -0.03, 0.01)], "v_proj's −0.0300 [−0.0400, −0.0200], p 0.010"),
    ],
)
def test_where_no_loss_is_shown_no_part_suffers(parts: list[Part], largest: str) -> None:
    one = answered(part_rows(parts), part_rows([("0", 0.05, 0.001)], by="layer"))
    assert one.outcome == NO_DIFFERENCE and one.verdict == (
        "Quantised alone by rtn_g, none of 2 kinds of linear is shown to suffer by itself; the largest change of the "
        f"NLL, {largest}, is no loss that is shown; 0.0200 nats per token could have been seen"
    )
    assert one.lines[0].startswith("rtn_g, one kind of linear at a time: none of 2")
    assert one.lines[1].startswith("rtn_g, one layer at a time: 1 of 1 layers is shown to suffer, layer 0 the most")


@pytest.mark.parametrize("other", [-0.001, math.nan])
def test_a_share_of_a_sum_takes_parts_of_which_none_falls(other: float) -> None:
    one = answered(part_rows([("up_proj", 0.02, 0.01), ("v_proj", other, 1.0)]))
    assert "up_proj the most: NLL +0.0200" in one.verdict and "of the sum" not in one.verdict


def test_a_zero_point_gains_only_where_it_is_shown_to() -> None:
    alone, twin = part_rows([("up_proj", 0.02, 0.01)]), "rtn_g_sym"
    one = answered(alone, part_rows([("up_proj", -0.02, 0.01), ("v_proj", -0.03, 0.2)], twin))
    assert one.lines[-1] == (
        "A zero point (rtn_g against rtn_g_sym) gains most in up_proj: −0.0200 [−0.0300, −0.0100], p 0.010; shown in 1 "
        "of 2 (up_proj)."
    )
    one = answered(alone, part_rows([("up_proj", 0.02, 0.01), ("v_proj", 0.01, 1.0)], twin))
    assert one.lines[-1] == (
        "A zero point (rtn_g against rtn_g_sym) is not shown to gain in any of 2 kinds of linear; the least NLL is "
        "v_proj's: +0.0100 [0.0000, +0.0200], p 1.00."
    )
