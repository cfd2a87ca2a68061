"""What is quantised, where it goes, and what is said of it."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from quant.files.artifacts import versions
from quant.records.method import Provenance
from quant.records.model import Embeddings, Linears, ModelRecord


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

    @classmethod
    def of(cls, out: Any) -> "Output":
        """Of a job's outputs."""
        return cls(Path(out.config).parent, Path(out.folds))


def provenance_of(model: ModelRecord, recipe: dict[str, Any], names: Any) -> Provenance:
    """Of a method's checkpoint, all but its tokens. model: convert's record; recipe: as the configuration has it;
    names: a job's wildcards."""
    return {
        "model": names.model,
        "method": names.method,
        "recipe": recipe,
        "seed": recipe["seed"],
        "versions": versions(),
        "model_fingerprint": model["fingerprint"],
    }
