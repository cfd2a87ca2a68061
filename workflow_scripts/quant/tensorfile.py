"""safetensors files: read one tensor at a time, write one tensor at a time."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quant.artifacts import whole
from quant.errors import InputError

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class TensorFile:
    """A safetensors file, memory-mapped; `get` reads one tensor."""

    def __init__(self, path: Path, handle: safe_open) -> None:
        self.path, self._handle = path, handle
        self.names = set(handle.keys())
        self.metadata: dict[str, str] = handle.metadata() or {}

    def get(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        if name not in self.names:
            raise InputError(f"{self.path}: has no tensor {name}; delete the file and run again to rebuild it")
        return self._handle.get_tensor(name).to(device, dtype)

    def layout(self) -> Layout:
        """Every tensor's dtype and shape, without reading it."""
        slices = {name: self._handle.get_slice(name) for name in sorted(self.names)}
        by_code = {code: dtype for dtype, code in DTYPES.items()}
        return {name: (by_code[part.get_dtype()], tuple(part.get_shape())) for name, part in slices.items()}

    def info(self, key: str) -> dict:
        """A JSON value from the file's metadata."""
        if key not in self.metadata:
            raise InputError(f"{self.path}: says nothing of its {key}; delete the file and run again to rebuild it")
        return json.loads(self.metadata[key])


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[TensorFile]:
    """Opens a safetensors file, or says in one line what is wrong with it."""
    path = Path(path)
    try:
        handle = safe_open(str(path), framework="pt")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: is not a whole safetensors file ({error}); replace it or delete it and run again"
        ) from None
    with handle:
        yield TensorFile(path, handle)


class Writer:
    """Writes tensors in any order into a file whose shapes are known beforehand, holding none of them."""

    def __init__(self, path: Path, layout: Layout, metadata: dict[str, str]) -> None:
        self.layout = layout
        header: dict[str, object] = {"__metadata__": metadata}
        self._offset: dict[str, int] = {}
        end = 0
        # widest dtype first keeps every tensor aligned to its own width
        for name, (dtype, shape) in sorted(layout.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
            start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
            header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
            self._offset[name] = start
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._file = path.open("wb")
        self._file.write(len(encoded).to_bytes(8, "little") + encoded)
        self._start = 8 + len(encoded)
        self._file.truncate(self._start + end)
        self._missing = set(layout)

    def put(self, name: str, tensor: Tensor) -> None:
        dtype, shape = self.layout[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} where {dtype} {shape} was declared")
        self._file.seek(self._start + self._offset[name])
        self._file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self._missing.remove(name)

    def close(self) -> None:
        self._file.close()
        if self._missing:
            raise ValueError(f"never written: {', '.join(sorted(self._missing))}")


@contextlib.contextmanager
def writing(path: str | Path, layout: Layout, metadata: dict[str, str]) -> Iterator[Writer]:
    """A Writer on a temporary file that gets its name once every tensor is in."""
    with whole(path) as temporary:
        writer = Writer(temporary, layout, metadata)
        try:
            yield writer
        except BaseException:
            writer._file.close()
            raise
        writer.close()


def save(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """All tensors at once."""
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with writing(path, layout, metadata) as writer:
        for name, tensor in tensors.items():
            writer.put(name, tensor)
