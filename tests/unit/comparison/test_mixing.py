"""What mixing widths bought: against which methods it is held, the line between them, and the prediction."""

import math
from typing import Any

import numpy as np
import pytest

from quant.comparison.answers import NO_ANSWER, Answered, Evidence
from quant.comparison.mixing import mixing, on_the_line, one_width
from quant.comparison.pairs import recipe_words
from quant.recipe import keys
from tests.unit.comparison.studies import evidence
from tests.unit.workflow.configurations import configured

YAML = """
methods:
  mixed: {budget: [{bits_per_weight: 3.5}, {bits_per_weight: 9}], clip: true}
study: {methods: [mixed, rtn_clip, gptq]}
"""


def measured(bits: dict[str, float], kl: dict[str, float], delta: float = -0.1) -> Evidence:
    found = evidence(configured(YAML), delta, 0.001)
    summary = found.summary.assign(
        bits_per_weight=found.summary.method.map(bits).fillna(16.0), kl=found.summary.method.map(kl).fillna(0.0)
    )
    return found._replace(summary=summary)


BITS = {"mixed-bits2": 2.3, "mixed-bits3": 3.5, "rtn_clip": 4.3, "mixed-bits8": 8.3, "gptq": 4.3,
        "mixed-bits_per_weight3.5": 3.5, "mixed-bits_per_weight9": 9.0}  # fmt: skip
KL = {"mixed-bits2": 1.0, "mixed-bits3": 0.2, "rtn_clip": 0.1, "mixed-bits8": 0.001, "gptq": 0.05,
      "mixed-bits_per_weight3.5": 0.15, "mixed-bits_per_weight9": 0.0005}  # fmt: skip


def answered(found: Evidence) -> Answered:
    answer = Answered("mixing", "?")
    mixing(found, answer)
    return answer


def test_a_mix_is_held_against_single_widths_of_at_most_its_size() -> None:
    found = answered(measured(BITS, KL))
    pairs = {(row["first"], row["second"]) for row in found.pairs}
    small = {"mixed-bits2", "mixed-bits3"}
    assert pairs == {("mixed-bits_per_weight3.5", name) for name in small} | {
        ("mixed-bits_per_weight9", name) for name in small | {"rtn_clip", "mixed-bits8"}
    }
    assert "Predicted against measured KL: Spearman" in found.lines[-1] and len(found.values) == len(BITS)
    (line,) = [line for line in found.lines if "the line between" in line]
    assert line.startswith("mixed-bits_per_weight3.5: 3.50 bits per weight and a KL of 0.1500, 0.75 of 0.2000")


def test_a_study_without_budgets_does_not_ask() -> None:
    plain = measured(BITS, KL)
    recipes = {name: recipe for name, recipe in plain.recipes.items() if not recipe["budget"]}
    assert answered(plain._replace(recipes=recipes)).outcome == NO_ANSWER and one_width(recipes) == []


def test_the_median_error_is_relative_to_what_was_measured() -> None:
    found = measured(BITS, KL)
    sums = {
        name: kl * factor for (name, kl), factor in zip(KL.items(), (1.1, 0.9, 1.2, 0.8, 1.3, 0.7, 2.0), strict=True)
    }
    table = found.linears.assign(predicted_nats=found.linears.method.map(sums))
    assert answered(found._replace(linears=table)).lines[-1].endswith("median relative error 20 %.")
    mix = "mixed-bits_per_weight3.5"
    table = table.assign(corrected_nats=np.where(table.method == mix, 1.02 * KL[mix], np.nan))
    both = answered(found._replace(linears=table))
    assert both.lines[-2].endswith("median relative error 20 %.")
    assert both.lines[-1] == (
        f"Of {mix}, whose prediction real swaps corrected: median relative error 2 %, before 30 %."
    )
    assert [row["corrected by swaps"] for row in both.values if row["method"] == mix] == ["0.15300"]


@pytest.mark.parametrize(
    ("size", "value"), [(2.0, 8.0), (3.0, 6.0), (4.0, 4.0), (6.0, 3.0), (8.0, 2.0), (1.9, math.nan), (9.0, math.nan)]
)
def test_the_line_between_neighbours(size: float, value: float) -> None:
    np.testing.assert_equal(on_the_line(size, [(4.0, 4.0), (8.0, 2.0), (2.0, 8.0)]), value)


def test_a_budget_in_words() -> None:
    recipe: dict[str, Any] = configured(YAML)["methods"]["mixed-bits_per_weight9"]
    assert recipe_words(recipe).startswith("2, 3, 4, 8 and 16 bit, mixed, groups of 64, asymmetric, clipped")
    several = recipe | {"candidates": [{"bits": 3, "group_size": 32}, {"bits": 4, "group_size": None}]}
    assert recipe_words(several).startswith("3 and 4 bit, mixed, groups of 32 and 64, asymmetric")
    assert not keys.has_effect("bits", recipe)
