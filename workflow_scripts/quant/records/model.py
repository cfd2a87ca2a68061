"""What convert leaves beside a checkpoint."""

from typing import Any, TypedDict


class Embeddings(TypedDict):
    """embedding, head: modules of the tokens' rows; tied: whether they share one weight, which the file has under the
    embedding's name; unread: why transformers cannot load them quantised, nothing where it can."""

    embedding: str
    head: str
    tied: bool
    unread: str


class Linears(TypedDict):
    """linears: names of those to quantise, each with the index of its block; left: the others, and why they stay in 16
    bit; unpacked: on which grids (`asymmetric`, `any`) no reader of packed weights reads them, and why; experts: of
    each block that has some, by what they read, width and number."""

    linears: dict[str, int]
    left: dict[str, str]
    unpacked: dict[str, str]
    embeddings: Embeddings
    experts: list[list[list[int]]]


class Origin(TypedDict, total=False):
    """sha256: of a GGUF file; commit: of a hub's repository; caveat: of weights that were quantised before."""

    sha256: str
    commit: str
    caveat: str


class ModelRecord(Origin, Linears):
    """source: as the configuration has it; fingerprint: of the checkpoint."""

    source: dict[str, Any]
    fingerprint: str
    versions: dict[str, str]
