"""Tables as CSV files, in which a name stays a name."""

from pathlib import Path

import pandas as pd

from quant.files.artifacts import whole

# columns of words: a method may be called 1e5 or NA, and a fingerprint of hexadecimal digits may look like 12e34
WORDS = (
    *("model", "method", "method_a", "method_b", "against", "dataset", "linear", "kind", "part"),
    *("checkpoint", "token_fingerprint", "task", "task_fingerprint", "rule"),
)


def write_table(path: str | Path, table: pd.DataFrame, digits: str | None = None) -> None:
    """digits: of its numbers, as a format (%.7g), or all."""
    with whole(path) as temporary:
        table.to_csv(temporary, index=False, float_format=digits)


def read_table(path: str | Path) -> pd.DataFrame:
    """What `write_table` wrote; WORDS are text as they stand, and elsewhere only an empty field is no number."""
    others = [name for name in pd.read_csv(path, nrows=0).columns if name not in WORDS]
    return pd.read_csv(
        path, dtype=dict.fromkeys(WORDS, str), keep_default_na=False, na_values={key: [""] for key in others}
    )
