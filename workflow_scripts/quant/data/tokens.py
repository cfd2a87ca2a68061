"""Token ids as artifacts: sequences, their fingerprint, and batches of equal width."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quant.errors import InputError
from quant.files import tensorfile
from quant.files.artifacts import rebuild, require


class Tokens(NamedTuple):
    """Sequences of token ids, each [length], and what made them."""

    sequences: list[Tensor]
    fingerprint: str
    provenance: dict[str, Any]

    @property
    def count(self) -> int:  # type: ignore[override]  # of tokens, where a tuple's counts its items
        return sum(len(sequence) for sequence in self.sequences)


class Shard(NamedTuple):
    """Of sequences in so many shards, in their order and of as equal numbers as can be, one; the first is 0."""

    shard: int
    shards: int

    def of(self, sequences: list[Tensor]) -> tuple[int, list[Tensor]]:
        """The index of its first sequence, and its sequences; none where there are more shards than sequences."""
        start, stop = (len(sequences) * i // self.shards for i in (self.shard, self.shard + 1))
        return start, sequences[start:stop]


class Batch(NamedTuple):
    """ids [n, width], padded on the right; lengths [n]; first: index of the first sequence."""

    ids: Tensor
    lengths: Tensor
    first: int

    @property
    def mask(self) -> Tensor | None:
        """True at real tokens [n, width]; None where nothing is padded. Causal attention needs no more than this."""
        width = self.ids.shape[1]
        if int(self.lengths.min()) == width:
            return None
        return torch.arange(width) < self.lengths[:, None]


def fingerprint(sequences: list[Tensor]) -> str:
    """16 hexadecimal digits that change with any id or boundary."""
    whole = hashlib.sha256()
    for sequence in sequences:
        whole.update(len(sequence).to_bytes(8, "little") + sequence.to(torch.int64).numpy().tobytes())
    return whole.hexdigest()[:16]


def save(path: str | Path, sequences: list[Tensor], provenance: dict[str, Any]) -> str:
    """Writes ids (int32, concatenated) and lengths; returns the fingerprint."""
    mark = fingerprint(sequences)
    tensors = {
        "ids": torch.cat(sequences).to(torch.int32),
        "lengths": torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64),
    }
    tensorfile.save(path, tensors, {"fingerprint": json.dumps(mark), "provenance": json.dumps(provenance)})
    return mark


def fingerprint_in(path: str | Path) -> str:
    """The fingerprint that a file of tokens gives, its ids not read."""
    with tensorfile.opened(path) as file:
        return file.info("fingerprint")


def load(path: str | Path, **expected: Any) -> Tokens:
    """Reads what `save` wrote; refused are ids that do not match their fingerprint, and another provenance."""
    with tensorfile.opened(path) as file:
        require(path, file.info("provenance"), **expected)
        lengths, ids = file.get("lengths").tolist(), file.get("ids").to(torch.int64)
        sequences = list(ids.split(lengths)) if sum(lengths) == len(ids) and min(lengths, default=0) > 0 else []
        if fingerprint(sequences) != file.info("fingerprint"):
            raise InputError(f"{path}: its token ids do not match their fingerprint; {rebuild(path)}")
        return Tokens(sequences, file.info("fingerprint"), file.info("provenance"))


def batches(sequences: list[Tensor], batch_tokens: int, alike: bool = False) -> Iterator[Batch]:
    """Sequences in their order, as many together as stay within `batch_tokens` after padding (at least one); alike:
    only those of one length."""
    start = 0
    while start < len(sequences):
        width, stop = 0, start
        while stop < len(sequences):
            widened = max(width, len(sequences[stop]))
            full = widened * (stop - start + 1) > batch_tokens
            if stop > start and (full or (alike and len(sequences[stop]) != width)):
                break
            width, stop = widened, stop + 1
        part = sequences[start:stop]
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
        yield Batch(ids, torch.tensor([len(sequence) for sequence in part]), start)
        start = stop


def windows(ids: Tensor, seq_len: int) -> list[Tensor]:
    """Non-overlapping windows of seq_len; a shorter rest is left out (the GPTQ and AWQ convention)."""
    return list(ids[: len(ids) // seq_len * seq_len].split(seq_len)) if len(ids) >= seq_len else []


def choose(sequences: list[Tensor], n: int, seed: int | None) -> list[Tensor]:
    """The first n, or n drawn without replacement by `seed` and kept in their order."""
    if seed is None or n >= len(sequences):
        return sequences[:n]
    drawn = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(seed))[:n]
    return [sequences[index] for index in sorted(drawn.tolist())]
