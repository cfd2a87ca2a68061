"""Sizes in words."""

from typing import Any

LARGE = 0.4  # of a file; what its embedding may take before it is said


def megabytes(size: float) -> str:
    """Of 10⁶ bytes: whole from 10 on, below that two digits that count, so that a small file is not 0."""
    return f"{size:,.0f}" if size >= 10 else f"{size:.2g}"


def embedding_words(row: Any, before: Any) -> str:
    """Where an embedding that is not quantised is a large part of a file: what 8 bits leave of it. row, before: of
    summary.csv, a method's and the original's."""
    own = row.embeddings_mb
    if not own > LARGE * row.size_mb or own < 0.9 * before.embeddings_mb:
        return ""
    less = own * (1 - 8 / before.bits_per_weight)
    smaller = megabytes(row.size_mb - less)
    return (
        f"The embedding, not quantised, is {own / row.size_mb:.0%} of this file: with embeddings: {{bits: 8}} in its "
        f"recipe it is of about {smaller} MB, which transformers and llama.cpp read and vLLM does not."
    )
