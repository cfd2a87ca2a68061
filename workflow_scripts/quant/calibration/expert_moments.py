"""Which experts have a second moment of their own where disk is short: the others have the mean of their layer's.

An expert reads two inputs, one for gate and up, one for down: kinds of an experts module, with a moment each expert. Of
a budget each block with experts gets an equal share. There the narrower kind comes first, and of a kind's experts those
that saw most tokens; what is left over is lent the mean over every token of the layer and each expert that it was
routed to.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from quant.calibration.moment_sizes import held, room_of, total, triangle_bytes
from quant.files.units import megabytes
from quant.models.structure.experts import routing


class Keeping(NamedTuple):
    """The configuration's `moments:`: the type that second moments are stored in, and GB that those of all experts may
    take together, None for any; or the number that stands for all that decide alike (moment_sizes.deciding)."""

    store: str = "float32"
    budget_gb: float | None = None

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.store)


WHOLE = Keeping()  # every one, in float32


class Kind(NamedTuple):
    """What experts of one module read at one place: its name within the block, its width, and by expert the linear that
    reads it first."""

    name: str
    width: int
    readers: tuple[str, ...]

    @property
    def each(self) -> int:
        """Bytes of one moment."""
        return triangle_bytes(self.width)


def kinds(block: nn.Module) -> list[Kind]:
    """The kinds of input of a block's experts, the narrowest first."""
    found = []
    for path, module in routing(block).items():
        for leaf in module.readers():
            names = tuple(".".join(filter(None, (path, str(i), leaf))) for i in range(module.called()))
            width = block.get_parameter(f"{names[0]}.weight").shape[1]
            found.append(Kind(".".join(filter(None, (path, leaf))), width, names))
    return sorted(found, key=lambda kind: (kind.width, kind.name))


def own(of_block: list[Kind], room: float) -> dict[Kind, int]:
    """How many experts of each kind have a moment of their own within so many bytes."""
    return dict(zip(of_block, held(sizes(of_block), room), strict=True))


def sizes(of_block: list[Kind]) -> list[tuple[int, int]]:
    return [(kind.each, len(kind.readers)) for kind in of_block]


def rooms(blocks: Iterable[nn.Module], keeping: Keeping) -> tuple[float, str]:
    """Bytes that each block's experts have for their own moments, were these float32, and what that means in words;
    none without experts."""
    part = keeping.dtype.itemsize / 4
    mixtures = [found for found in map(kinds, blocks) if found]
    if not mixtures:
        return float("inf"), ""
    of_blocks = list(map(sizes, mixtures))
    room, whole = room_of(keeping.budget_gb, part, of_blocks), part * total(of_blocks)
    if room == float("inf"):
        return room, f"experts' second moments take {megabytes(whole / 1e6)} MB"
    kept = [(n, kind) for found in mixtures for kind, n in own(found, room).items()]
    among, lent = (sum(counts) for counts in zip(*((len(k.readers), len(k.readers) - n) for n, k in kept), strict=True))
    return room, (
        f"experts' second moments would take {megabytes(whole / 1e6)} MB, more than moments.budget_gb allows: {lent} "
        f"of {among} are lent their layer's pooled one, the others take "
        f"{megabytes(part * sum(n * kind.each for n, kind in kept) / 1e6)} MB"
    )
