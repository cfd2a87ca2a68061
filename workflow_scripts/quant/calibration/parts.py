"""A linear's output channels in parts that have a second moment each."""

from itertools import pairwise


def row_parts(n_out: int, parts: int) -> list[slice]:
    """As equal as can be, none empty."""
    parts = min(parts, n_out)
    bounds = [k * n_out // parts for k in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]
