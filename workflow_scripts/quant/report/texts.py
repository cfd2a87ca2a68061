"""What the report says of its texts: what was measured on, what was calibrated on, and whether they are apart."""

from typing import Any

import pandas as pd

from quant.data.overlap import SHARE, percent, short_words


def text_lines(summary: pd.DataFrame) -> list[str]:
    """A line for each model's data set, and one for each calibration set of a model's methods."""
    groups = summary.groupby(["model", "dataset"], sort=False)
    measured = [_measured(next(rows.itertuples())) for _, rows in groups]
    sets = summary.dropna(subset="calibration_sequences")
    return measured + [
        f"{model} calibrated on {int(tokens):,} tokens in {int(sequences):,} sequences{short_words(int(sequences))}: "
        f"{', '.join(dict.fromkeys(rows.method))}"
        for (model, sequences, tokens), rows in sets.groupby(
            ["model", "calibration_sequences", "calibration_tokens"], sort=False
        )
    ]


def _measured(row: Any) -> str:
    kl = "–" if pd.isna(row.kl_tokens) else f"{row.kl_tokens:,.0f}"
    line = (
        f"{row.model} on {row.dataset}: {int(row.tokens):,} tokens in {int(row.sequences):,} sequences"
        f"{short_words(row.sequences)} (protocol {row.protocol}, at most {int(row.seq_len):,} tokens each); "
        f"KL and top-1 over {kl} tokens"
    )
    if row.seen_share <= SHARE:
        return line
    return f"{line}; calibration has seen {percent(row.seen_share)} of this text: it is no proof of what learns from it"
