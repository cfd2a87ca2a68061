"""What second moments take, and how many of experts' a budget holds. No torch, since rules ask as the DAG is built."""

from collections.abc import Sequence

GB = 10**9
# of a block: by kind of its experts' inputs, the narrowest first, bytes of one moment in float32 and how many experts
Sizes = Sequence[tuple[int, int]]


def triangle_bytes(n: int) -> int:
    """Of a float32 triangle of [n, n]."""
    return 4 * ((n + 1) // 2) * (n + 1)


def total(blocks: Sequence[Sizes]) -> int:
    return sum(each * n for block in blocks for each, n in block)


def held(block: Sizes, room: float) -> list[int]:
    """How many experts of each kind have a moment of their own within so many bytes."""
    found = []
    for each, n in block:
        found.append(int(min(n, room // each)))
        room -= found[-1] * each
    return found


def room_of(budget_gb: float | None, part: float, blocks: Sequence[Sizes]) -> float:
    """Bytes that each block's experts have for their own moments, were these float32. part: of float32, what they are
    stored in."""
    if budget_gb is None or part * total(blocks) <= budget_gb * GB:
        return float("inf")
    return budget_gb * GB / part / len(blocks)


def deciding(budget_gb: float | None, part: float, blocks: Sequence[Sizes]) -> float | None:
    """One number for all budgets that decide as this one does; None where all experts have their own, or none are
    there."""
    room = room_of(budget_gb, part, blocks)
    if room == float("inf"):
        return None
    sums = [sum(each * n for (each, _), n in zip(block, held(block, room), strict=True)) for block in blocks]
    return (max(sums) + 0.5) * part * len(blocks) / GB  # what is decided hangs on whole bytes
