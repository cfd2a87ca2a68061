"""What is quantised, and where it goes."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from quant.records.model import Embeddings, Linears


class Source(NamedTuple):
    """A model to quantise: its checkpoint's folder, and what convert recorded of it (records.model.Linears)."""

    folder: Path
    linears: dict[str, int]
    left: Mapping[str, str] = MappingProxyType({})
    unpacked: Mapping[str, str] = MappingProxyType({})
    embeddings: Embeddings | None = None

    @classmethod
    def of(cls, folder: Path, record: Linears) -> "Source":
        return cls(folder, record["linears"], record["left"], record["unpacked"], record["embeddings"])


class Output(NamedTuple):
    """Where a quantised checkpoint goes, a folder, and its folds, a file."""

    folder: Path
    folds: Path
