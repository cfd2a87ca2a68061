"""Names that look like numbers or like nothing come back from a file as they were."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from quant.files.csv_tables import WORDS, read_table, write_table

NAMES = [
    "1e5",
    "007",
    "50883662e0475921",
    "0883662104759210",
    "NA",
    "None",
    "null",
    "true",
    "inf",
    "gw_awq",
    'a"b, c',
    "",
]


@pytest.mark.parametrize("column", WORDS)
def test_words_stay_words(tmp_path: Path, column: str) -> None:
    """Together, and where all of a column look like numbers."""
    for names in (NAMES, NAMES[:4], NAMES[4:5]):
        table = pd.DataFrame({column: names, "nll": np.linspace(0.1, 3, len(names)), "rows": range(len(names))})
        table.loc[0, "nll"] = np.nan
        write_table(tmp_path / "table.csv", table)
        pd.testing.assert_frame_equal(read_table(tmp_path / "table.csv"), table)
