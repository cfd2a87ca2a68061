"""Tensors on the disk instead of in memory, for as long as a job needs them: mapped, so that their pages are given back
where memory is short."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quant.files.behind import raw

ALIGNED = 64  # bytes


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
