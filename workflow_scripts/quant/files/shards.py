"""A checkpoint's weights in one file, or in shards with an index, as transformers reads them.

Shards hold at most LIMIT bytes of tensors (one that is larger has one to itself), in the order of the model's blocks:
whoever goes block by block has few of them open.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from quant.files import naming, pieces, tensorfile
from quant.files.artifacts import digest, write_plain_json
from quant.files.tensorfile import Layout, Writer
from quant.files.weight_names import INDEX, LIMIT, WEIGHTS, is_weights, shard


def remove(folder: Path) -> None:
    """A checkpoint's weights, the index first: without it shards are none."""
    for file in sorted(
        (file for file in folder.glob("model*") if is_weights(file)), key=lambda file: file.name != INDEX
    ):
        file.unlink()


def in_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts blocks by their numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def split(layout: Layout, limit: int) -> list[Layout]:
    """A layout in shards."""
    found: list[Layout] = []
    room = 0
    for name in sorted(layout, key=in_order):
        dtype, shape = layout[name]
        size = dtype.itemsize * torch.Size(shape).numel()
        if not found or size > room:
            found.append({})
            room = limit
        found[-1][name] = layout[name]
        room -= size
    return found


class Shards:
    """A Writer of several files, each opened by its first tensor and closed by its last."""

    def __init__(self, folder: Path, layout: Layout, metadata: dict[str, str], limit: int) -> None:
        self.layout, self._folder, self._metadata = layout, folder, metadata
        wholes = pieces.read(metadata, str(folder))
        parts = split(pieces.gathered(wholes, layout), limit)
        self._names = [shard(i, len(parts)) for i in range(1, len(parts) + 1)]
        home = {name: i for i, part in enumerate(parts) for name in part}
        called = naming.read(metadata, str(folder))
        self.index = {called.outside(name): self._names[i] for name, i in home.items()}
        self.size = sum(dtype.itemsize * torch.Size(shape).numel() for part in parts for dtype, shape in part.values())
        self._home = {name: home[wholes.pieces[name].whole if name in wholes.pieces else name] for name in layout}
        self._missing = [{name for name in layout if self._home[name] == i} for i in range(len(parts))]
        self._stored = [set(part) for part in parts]
        self._open: dict[int, Writer] = {}
        self._made: dict[str, str] = {}
        for left in folder.glob(".model*.part"):  # by a job that was killed
            left.unlink()

    def _temporary(self, i: int) -> Path:
        return self._folder / f".{self._names[i]}.{os.getpid()}.part"

    def put(self, name: str, tensor: Tensor) -> None:
        i = self._home[name]
        if i not in self._open:
            layout = {each: value for each, value in self.layout.items() if self._home[each] == i}
            own = pieces.of_some(self._metadata, self._stored[i])
            self._open[i] = Writer(self._temporary(i), layout, own)
        self._open[i].put(name, tensor)
        self._missing[i].remove(name)
        if not self._missing[i]:
            self._close(i)

    def _close(self, i: int) -> None:
        self._open.pop(i).close()
        with self._temporary(i).open("rb") as file:
            self._made[self._names[i]] = digest(file.read(int.from_bytes(file.read(8), "little")))
            os.fsync(file.fileno())

    def close(self) -> None:
        """Gives all files their names, the index last."""
        if missing := sorted(set().union(*self._missing)):
            raise ValueError(f"never written: {', '.join(missing)}")
        remove(self._folder)
        for i, name in enumerate(self._names):
            self._temporary(i).replace(self._folder / name)
        # the marks, of what shards hold, so that another content is another index
        said = {"total_size": self.size, "marks": json.dumps(self._made, sort_keys=True)}
        write_plain_json(self._folder / INDEX, {"metadata": said, "weight_map": dict(sorted(self.index.items()))})

    def abandon(self) -> None:
        for writer in self._open.values():
            writer.abandon()
        for i in range(len(self._names)):
            self._temporary(i).unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path, layout: Layout, metadata: dict[str, str]) -> Iterator[Writer | Shards]:
    """A Writer of a checkpoint's weights: of one file, or of shards where `path` is their index. What of another one is
    there goes."""
    if path.name != INDEX:
        with tensorfile.writing(path, layout, metadata) as one:
            yield one
        if path.name == WEIGHTS:
            for file in path.parent.glob("model*"):
                if is_weights(file) and file != path:
                    file.unlink()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = Shards(path.parent, layout, metadata, LIMIT)
    try:
        yield writer
        writer.close()
    except BaseException:
        writer.abandon()
        raise


def save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """All tensors at once."""
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with writing(path, layout, metadata) as writer:
        for name in sorted(tensors, key=in_order):
            writer.put(name, tensors[name])


def publish(stage: Path, target: Path) -> None:
    """Moves a finished checkpoint's weights into another directory, the index last."""
    files = sorted((file for file in stage.glob("model*") if is_weights(file)), key=lambda file: file.name == INDEX)
    remove(target)
    for file in files:
        shutil.move(file, target / file.name)
