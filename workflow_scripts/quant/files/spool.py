"""Tensors on the disk instead of in memory, for as long as a job needs them: mapped, so that their pages are given back
where memory is short."""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quant.files.behind import raw

ALIGNED = 64  # bytes


def room(folder: Path, n_bytes: int) -> Tensor:
    """So many zeros [bytes], mapped from a file without a name in a folder, which goes with them or with the process.
    The disk gives the room at once: a page that it had not, once written to, would end the process without a word."""
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, n_bytes)
        return torch.from_numpy(np.memmap(file, np.uint8, "r+", 0, (n_bytes,)))


class Spool:
    """A file without a name in a folder, which grows by what it is handed and goes with the last of its tensors, or
    with the process."""

    def __init__(self, folder: Path) -> None:
        self._file, self._end = tempfile.TemporaryFile(dir=folder), 0  # noqa: SIM115
        self._own: set[int] = set()  # addresses of what is mapped

    def keep(self, tensor: Tensor) -> Tensor:
        """The same values, mapped from the file; what is written into them goes there."""
        if tensor.numel() == 0 or tensor.untyped_storage().data_ptr() in self._own:
            return tensor
        self._file.seek(self._end)
        self._file.write(raw(tensor))
        self._file.flush()
        found = torch.from_numpy(np.memmap(self._file, np.uint8, "r+", self._end, (tensor.nbytes,)))
        self._end += -(-tensor.nbytes // ALIGNED) * ALIGNED
        self._own.add(found.untyped_storage().data_ptr())
        return found.view(tensor.dtype).reshape(tensor.shape)
