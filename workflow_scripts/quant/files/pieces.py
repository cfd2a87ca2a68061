"""Tensors that a file holds as pieces of larger ones: experts within one of three dimensions, and matrices that lie the
other way round.

Whoever reads or writes such a file by `tensorfile` knows the pieces' names only; other readers know the whole tensors'.
"""

import json
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quant.errors import InputError
from quant.files.artifacts import rebuild

KEY = "pieces"  # of a file's metadata


class Piece(NamedTuple):
    """Of the tensor `whole` in a file: its entry `at` along the first dimension (None: all of it), transposed or
    not, and of that the rows from start to stop (None: to the end) in strides."""

    whole: str
    at: int | None = None
    start: int = 0
    stop: int | None = None
    stride: int = 1
    transposed: bool = False

    def of(self, whole: Tensor) -> Tensor:
        """A view."""
        found = whole if self.at is None else whole[self.at]
        return (found.T if self.transposed else found)[self.start : self.stop : self.stride]


class Wholes(NamedTuple):
    """Shapes of whole tensors, and the pieces of them by name."""

    shapes: dict[str, tuple[int, ...]]
    pieces: dict[str, Piece]

    def metadata(self) -> dict[str, str]:
        """Of a file that holds them; {} of one that does not."""
        if not self.pieces:
            return {}
        listed: dict[str, tuple[list[int], dict[str, list]]] = {
            whole: (list(shape), {}) for whole, shape in sorted(self.shapes.items())
        }
        for name, piece in self.pieces.items():
            listed[piece.whole][1][name] = list(piece[1:])
        return {KEY: json.dumps(listed, separators=(",", ":"))}


def read(metadata: Mapping[str, str], where: str) -> Wholes:
    """What a file's metadata says."""
    try:
        listed = json.loads(metadata.get(KEY, "{}"))
        shapes = {whole: tuple(shape) for whole, (shape, _) in listed.items()}
        pieces = {name: Piece(whole, *place) for whole, (_, own) in listed.items() for name, place in own.items()}
        for piece in pieces.values():
            piece.of(torch.empty(shapes[piece.whole], device="meta"))
    except (ValueError, TypeError, AttributeError, IndexError, RuntimeError):
        raise InputError(f"{where}: its pieces are not those of its tensors; {rebuild(where)}") from None
    return Wholes(shapes, pieces)


def joined(metadata: Sequence[dict[str, str]]) -> dict[str, str]:
    """Of several files that are one: the first one's, with the pieces of all; of one alone, its own."""
    if len(metadata) < 2:
        return dict(metadata[0]) if metadata else {}
    every = (json.loads(each.get(KEY, "{}")).items() for each in metadata)
    listed = dict(sorted(entry for entries in every for entry in entries))
    found = {key: value for key, value in metadata[0].items() if key not in (KEY, "checksums")}
    return found | ({KEY: json.dumps(listed, separators=(",", ":"))} if listed else {})


def of_some(metadata: Mapping[str, str], stored: Set[str]) -> dict[str, str]:
    """Of a file that holds only these tensors of one with this metadata."""
    listed = {key: value for key, value in json.loads(metadata.get(KEY, "{}")).items() if key in stored}
    found = {key: value for key, value in metadata.items() if key != KEY}
    return found | ({KEY: json.dumps(listed, separators=(",", ":"))} if listed else {})


def gathered(wholes: Wholes, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, Any]:
    """A layout with the whole tensors in place of their pieces, each in the type of those."""
    plain = {name: value for name, value in layout.items() if name not in wholes.pieces}
    return plain | {piece.whole: (layout[name][0], wholes.shapes[piece.whole]) for name, piece in wholes.pieces.items()}


class Gatherer:
    """Puts pieces together in the host's memory, one whole tensor at a time as they come."""

    def __init__(self, wholes: Wholes) -> None:
        self._wholes = wholes
        self._made: dict[str, Tensor] = {}
        self._missing: dict[str, int] = {}
        for piece in wholes.pieces.values():
            self._missing[piece.whole] = self._missing.get(piece.whole, 0) + 1

    def add(self, name: str, value: Tensor) -> tuple[str, Tensor] | None:
        """The whole tensor that this piece completes, with its name."""
        piece = self._wholes.pieces[name]
        whole = piece.whole
        if whole not in self._made:
            self._made[whole] = torch.empty(self._wholes.shapes[whole], dtype=value.dtype)
        piece.of(self._made[whole]).copy_(value)
        self._missing[whole] -= 1
        return None if self._missing[whole] else (whole, self._made.pop(whole))
