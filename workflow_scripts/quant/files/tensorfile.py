"""safetensors files: read one tensor at a time, write one tensor at a time; a thread each, so that neither waits.

Files that we write hold a CRC-32 of every tensor in their metadata, one after another in the order of the tensors'
names. A tensor is held against its own when it is read: what is not read costs nothing, and a changed bit never becomes
a number.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quant.errors import InputError
from quant.files import naming, pieces
from quant.files.artifacts import digest, read_json, rebuild, whole
from quant.files.behind import Behind
from quant.files.checksums import checksum, cpus, raw

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
BY_CODE = {code: dtype for dtype, code in DTYPES.items()}
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
READERS = 8  # at most, that read ahead and hold against checksums, 1 to 2 GB/s each


class TensorFile:
    """A safetensors file, or several as one, memory-mapped; `get` reads one tensor and holds it against its checksum,
    if it has one."""

    def __init__(self, path: Path, handles: Mapping[Path, safe_open]) -> None:
        """path: the file's, or that of the index of several."""
        self.path, self._files = path, list(handles)
        # safetensors gives them in any order; what is copied into another file is the same bytes every time
        said = {file: dict(sorted((handle.metadata() or {}).items())) for file, handle in handles.items()}
        self.metadata: dict[str, str] = pieces.joined(list(said.values()))
        self.naming = naming.read(self.metadata, str(path))
        self._handles: dict[str, safe_open] = {}  # by what it has stored
        self._checksums: dict[str, str] = {}
        for file, handle in handles.items():
            stored = {self.naming.inside(name) for name in handle.keys()}  # noqa: SIM118
            self._handles |= dict.fromkeys(stored, handle)
            self._checksums |= checksums_in(file, said[file].get("checksums"), stored)
        wholes = pieces.read(self.metadata, str(path))
        self._pieces = wholes.pieces
        self.names = (set(self._handles) - set(wholes.shapes)) | set(self._pieces)
        self._held: set[str] = set()  # whole tensors that match their checksums
        self._reader: ThreadPoolExecutor | None = None
        self._ahead: dict[str, Future[Tensor]] = {}

    def _read(self, name: str) -> Tensor:
        piece = self._pieces.get(name)
        if piece is None:
            return self._checked(name)
        whole = self._unchecked(piece.whole) if piece.whole in self._held else self._checked(piece.whole)
        self._held.add(piece.whole)
        return piece.of(whole).contiguous()

    def _unchecked(self, name: str) -> Tensor:
        return self._handles[name].get_tensor(self.naming.outside(name))

    def _checked(self, name: str) -> Tensor:
        tensor = self._unchecked(name)
        if name in self._checksums:
            self._hold(name, checksum(raw(tensor)))
        return tensor

    def _hold(self, name: str, found: str) -> None:
        if self._checksums.get(name, found) != found:
            raise InputError(f"{self.path}: {name} does not match its checksum; {rebuild(self.path)}")

    def prefetch(self, names: Iterable[str], device: str | torch.device) -> None:
        """Reads what `get` will be asked for next into page-locked memory while the GPU works; on a CPU the mapping
        itself serves."""
        if torch.device(device).type == "cpu":
            return
        if self._reader is None:
            self._reader = ThreadPoolExecutor(min(READERS, cpus()), "reader")
        for name in names:
            if name in self.names and name not in self._ahead:
                self._ahead[name] = self._reader.submit(self._pinned, name)

    def _pinned(self, name: str) -> Tensor:
        if name in self._pieces:
            return self._read(name).pin_memory()
        value = self._unchecked(name)
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        self._hold(name, checksum(raw(value), raw(host)))
        return host

    def get(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        if name not in self.names:
            raise InputError(f"{self.path}: has no tensor {name}; {rebuild(self.path)}")
        ahead = self._ahead.pop(name, None)
        value = self._read(name) if ahead is None else ahead.result()
        # the type changes where the tensor goes, since fewer bytes travel then
        # and nothing waits for what the device was given: what is not page-locked is copied before the call returns
        return value.to(device, non_blocking=True).to(dtype or value.dtype)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)

    def layout(self) -> Layout:
        """Every tensor's dtype and shape, without reading it."""
        slices = {name: self._slice(name) for name in sorted(self._handles)}
        stored = {name: (BY_CODE[part.get_dtype()], tuple(part.get_shape())) for name, part in slices.items()}
        found = {name: value for name, value in stored.items() if name in self.names}
        for name, piece in self._pieces.items():
            dtype, shape = stored[piece.whole]
            found[name] = dtype, tuple(piece.of(torch.empty(shape, device="meta")).shape)
        return dict(sorted(found.items()))

    def _slice(self, name: str) -> Any:
        return self._handles[name].get_slice(self.naming.outside(name))

    def headers(self) -> bytes:
        """Of its files, one after another: names, types, shapes, checksums."""
        found = []
        for path in self._files:
            with path.open("rb") as file:
                found.append(file.read(int.from_bytes(file.read(8), "little")))
        return b"".join(found)

    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self._files)

    def mark(self) -> str:
        """16 hexadecimal digits of every tensor's name, type, shape and checksum: of the same tensors always the same,
        whatever made them. Those that the file has no checksums of are read."""
        held = []
        for name in sorted(self._handles):
            part = self._slice(name)
            own = self._checksums.get(name) or checksum(raw(self._checked(name)))
            held.append((name, part.get_dtype(), part.get_shape(), own))
        return digest(json.dumps(held).encode())

    def info(self, key: str) -> Any:
        """A JSON value from the file's metadata."""
        if key not in self.metadata:
            raise InputError(f"{self.path}: says nothing of its {key}; {rebuild(self.path)}")
        try:
            return json.loads(self.metadata[key])
        except json.JSONDecodeError:
            raise InputError(f"{self.path}: its {key} is not JSON; {rebuild(self.path)}") from None


def checksums_in(path: Path, held: str | None, stored: set[str]) -> dict[str, str]:
    """A file's, by name; {} of one that is not written by us."""
    if held is None:
        return {}
    if len(held) != 8 * len(stored):
        raise InputError(f"{path}: its checksums are not of its tensors; {rebuild(path)}")
    return {name: held[8 * i : 8 * i + 8] for i, name in enumerate(sorted(stored))}


def stored_at(path: Path) -> Path:
    """A file, or the index of its shards where it is in several."""
    index = path.with_name(f"{path.name}.index.json")
    return index if index.is_file() and not path.exists() else path


def shards_of(index: Path) -> list[Path]:
    """The files that an index names."""
    try:
        return [index.parent / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{index}: names no shards; {rebuild(index)}") from None


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[TensorFile]:
    """Opens a safetensors file, or the shards that its index names, or says in one line what is wrong with it."""
    path = stored_at(Path(path))
    with contextlib.ExitStack() as stack:
        files = shards_of(path) if path.suffix == ".json" else [path]
        handles = {file: stack.enter_context(_handle(file, path)) for file in files}
        yield stack.enter_context(contextlib.closing(TensorFile(path, handles)))


def _handle(path: Path, target: Path) -> safe_open:
    """target: what makes the file again."""
    try:
        path.open("rb").close()  # safe_open takes a file that may not be read for a missing one
        return safe_open(str(path), framework="pt")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {rebuild(target)}") from None
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); mend its permissions") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is not a whole safetensors file ({error}); {rebuild(target)}") from None


def _joined(checksums: dict[str, str]) -> str:
    return "".join(checksums[name] for name in sorted(checksums))


def _entry(dtype: torch.dtype, shape: tuple[int, ...], start: int, end: int) -> dict[str, object]:
    return {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}


def entry_bytes(name: str, dtype: torch.dtype, shape: tuple[int, ...], end: int) -> int:
    """What a tensor adds to a header, its checksum with it, at most; end: bytes of all tensors."""
    entry = _entry(dtype, shape, end, end)
    return len(json.dumps({name: entry}, separators=(",", ":"))) - 1 + 8


def header_bytes(layout: Layout, metadata: dict[str, str]) -> int:
    """A header's length, at most."""
    end = sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in layout.values())
    empty = len(json.dumps({"__metadata__": metadata | {"checksums": ""}}, separators=(",", ":")))
    return 8 + 8 + empty + sum(entry_bytes(name, *value, end) for name, value in layout.items())


def verify(path: str | Path) -> None:
    """Holds every tensor of a file against its checksum, for readers that do not read by `get`."""
    with opened(path) as file:
        for name in sorted(file.names):
            file.get(name)


class Writer:
    """Writes tensors in any order into a file whose shapes are known beforehand, holding few of them; a tensor that was
    put must not change any more. Those that the metadata says are pieces are put together."""

    def __init__(self, path: Path, layout: Layout, metadata: dict[str, str]) -> None:
        self.layout = layout
        wholes = pieces.read(metadata, str(path))
        self._pieces, self._gatherer = set(wholes.pieces), pieces.Gatherer(wholes)
        self._missing = set(layout)
        layout = pieces.gathered(wholes, layout)
        self._checksums = dict.fromkeys(layout, "0" * 8)
        self._metadata, called = metadata, naming.read(metadata, str(path))
        header: dict[str, object] = {}
        self._offset: dict[str, int] = {}
        end = 0
        # widest dtype first keeps every tensor aligned to its own width
        for name, (dtype, shape) in sorted(layout.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
            start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
            header[called.outside(name)] = _entry(dtype, shape, start, end)
            self._offset[name] = start
        self._tensors = header
        self._file = path.open("wb")
        self._start = self._write_header()
        self._file.truncate(self._start + end)
        self._behind = Behind(self._file)

    def _write_header(self) -> int:
        """At the file's beginning; of the same length whatever the checksums are. Returns where the tensors start."""
        metadata = self._metadata | {"checksums": _joined(self._checksums)}
        encoded = json.dumps({"__metadata__": metadata, **self._tensors}, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._file.seek(0)
        self._file.write(len(encoded).to_bytes(8, "little") + encoded)
        return 8 + len(encoded)

    def put(self, name: str, tensor: Tensor) -> None:
        dtype, shape = self.layout[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} where {dtype} {shape} was declared")
        self._missing.remove(name)
        if name in self._pieces:
            made = self._gatherer.add(name, tensor)
            if made is None:
                return
            name, tensor = made
        self._behind.put(name, self._start + self._offset[name], tensor)

    def close(self) -> None:
        self._behind.finish()
        self._checksums |= self._behind.checksums
        self._write_header()
        self._file.close()
        if self._missing:
            raise ValueError(f"never written: {', '.join(sorted(self._missing))}")

    def abandon(self) -> None:
        self._behind.abandon()


class Appender:
    """Writes tensors of one type one after another as they come, into a file whose header is filled in last; `metadata`
    is set by then. room: bytes for the header."""

    def __init__(self, path: Path, room: int) -> None:
        self.metadata: dict[str, str] = {}
        self._header: dict[str, object] = {}
        self._dtype: torch.dtype | None = None
        self._room, self._end = room - room % 8, 0
        self._file = path.open("wb")
        self._behind = Behind(self._file)

    def put(self, name: str, tensor: Tensor) -> None:
        self._dtype = self._dtype or tensor.dtype  # one width, so that every tensor is aligned to it
        if tensor.dtype != self._dtype or name in self._header:
            raise ValueError(f"{name}: {tensor.dtype}, or put before")
        start, self._end = self._end, self._end + tensor.nbytes
        self._header[name] = _entry(tensor.dtype, tuple(tensor.shape), start, self._end)
        self._behind.put(name, 8 + self._room + start, tensor)

    def close(self) -> None:
        self._behind.finish()
        metadata = self.metadata | {"checksums": _joined(self._behind.checksums)}
        encoded = json.dumps({"__metadata__": metadata} | self._header, separators=(",", ":")).encode()
        if len(encoded) > self._room:
            raise ValueError(f"a header of {len(encoded)} bytes has {self._room}")
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + encoded.ljust(self._room))
        self._file.close()

    def abandon(self) -> None:
        self._behind.abandon()


AnyWriter = TypeVar("AnyWriter", Writer, Appender)


@contextlib.contextmanager
def _closed(writer: AnyWriter) -> Iterator[AnyWriter]:
    try:
        yield writer
    except BaseException:
        writer.abandon()
        raise
    writer.close()


@contextlib.contextmanager
def writing(path: str | Path, layout: Layout, metadata: dict[str, str]) -> Iterator[Writer]:
    """A Writer on a temporary file that gets its name once every tensor is in."""
    with whole(path) as temporary, _closed(Writer(temporary, layout, metadata)) as writer:
        yield writer


@contextlib.contextmanager
def appending(path: str | Path, n_linears: int) -> Iterator[Appender]:
    """An Appender on a temporary file that gets its name at the end; its header has room for ten entries and two
    names for each linear."""
    with whole(path) as temporary, _closed(Appender(temporary, 65536 + 2048 * n_linears)) as writer:
        yield writer


def save(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """All tensors at once."""
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with writing(path, layout, metadata) as writer:
        for name, tensor in tensors.items():
            writer.put(name, tensor)
