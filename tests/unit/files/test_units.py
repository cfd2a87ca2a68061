"""Sizes in words."""

import pytest

from quant.files.units import megabytes


@pytest.mark.parametrize(
    ("size", "words"), [(1234.6, "1,235"), (10.2, "10"), (9.96, "10"), (3.14, "3.1"), (0.0527, "0.053"), (0.0, "0")]
)
def test_a_small_file_is_not_0_mb(size: float, words: str) -> None:
    assert megabytes(size) == words
