"""Methods with equal tensors are said."""

import pandas as pd
import pytest

from quant.comparison.twins import Twins, said, twins


def test_equal_marks_of_one_model_are_twins() -> None:
    rows = [
        *[("m", "original", "a"), ("m", "one", "b"), ("m", "two", "c"), ("m", "three", "b")],
        *[("n", "original", "a"), ("n", "one", "b"), ("n", "two", "d"), ("n", "three", "e")],
    ]
    one = pd.DataFrame(rows, columns=["model", "method", "tensors"]).assign(storage="packed")
    of_file = one.iloc[[1]].assign(method="file", storage="gguf")  # of one's tensors, whose figures are the file's
    one = pd.concat([one, of_file])
    both = pd.concat([one.assign(dataset=dataset) for dataset in "de"])
    assert twins(both) == [Twins("m", ("one", "three"))]
    assert twins(both[both.model == "n"]) == []


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ({"bits": 4, "seed": 1}, {"bits": 4, "seed": 2}, "seed (1, 2) changes no weight"),
        ({"clip": True, "seed": 1}, {"seed": 2}, "clip (true, null) and seed (1, 2) change no weight"),
        ({"tune": None, "n_calib": None}, {"tune": {}, "n_calib": 9}, "tune (null, {}) changes no weight"),
        ({"bits": 4}, {"bits": 4}, "their recipes are one"),
        # its own key at its default is no difference
        (
            {"rounding": "nearest"},
            {"rounding": "gptq", "damp": 0.01},
            'rounding ("nearest", "gptq") changes no weight',
        ),
    ],
)
def test_what_differs_is_named(first: dict, second: dict, why: str) -> None:
    found = said(Twins("m", ("one", "two")), {"one": first, "two": second})
    assert found == f"one and two have the same tensors: {why}. What differs in their rows is chance."
