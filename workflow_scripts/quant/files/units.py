"""Sizes in words."""


def megabytes(size: float) -> str:
    """Of 10⁶ bytes: whole from 10 on, below that two digits that count, so that a small file is not 0."""
    return f"{size:,.0f}" if size >= 10 else f"{size:.2g}"
