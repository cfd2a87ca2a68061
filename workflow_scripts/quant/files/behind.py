"""Tensors written by a thread behind the one that makes them, their checksums by another."""

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import BinaryIO

import torch
from torch import Tensor

from quant.files.checksums import checksum, raw

CHECKERS = 3  # that take checksums of what is written, beside the thread that writes it
WAITING = 4  # tensors that may wait to be written, however large; the next `put` waits for one of them
SMALL = 2**28  # bytes of tensors that may wait, however many: blocks come at once, and the writer works meanwhile
FLUSH = 2**28  # bytes after which a writer asks the disk to keep up, so that the last fsync is short


class Room:
    """For tensors that wait to be written."""

    def __init__(self) -> None:
        self._changed, self._tensors, self._bytes = threading.Condition(), 0, 0

    def take(self, n_bytes: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._tensors < WAITING or self._bytes + n_bytes <= SMALL)
            self._tensors, self._bytes = self._tensors + 1, self._bytes + n_bytes

    def give(self, n_bytes: int) -> None:
        with self._changed:
            self._tensors, self._bytes = self._tensors - 1, self._bytes - n_bytes
            self._changed.notify()


def given_back(room: Room, n_bytes: int, checked: Future[str]) -> None:
    """A callback, which stays with its future: it must not hold the tensor."""
    room.give(n_bytes)


class Behind:
    """Writes tensors at offsets of a file in a thread, in their order; what fails there is raised by the next call.
    checksums: of what was written, whole after `finish`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._thread = file, ThreadPoolExecutor(1, "writer")
        self._checker = ThreadPoolExecutor(CHECKERS, "checker")
        self._room, self._pending = Room(), list[Future[None]]()
        self._flusher, self._flushed = ThreadPoolExecutor(1, "flusher"), Future[None]()
        self._flushed.set_result(None)
        self._unflushed = 0
        self._checked: dict[str, Future[str]] = {}
        self.checksums: dict[str, str] = {}

    def put(self, name: str, offset: int, tensor: Tensor) -> None:
        tensor, copied = tensor.detach(), None
        if tensor.is_cuda:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            tensor, copied = host, torch.cuda.Event()
            copied.record()
        self._room.take(tensor.nbytes)
        while self._pending and self._pending[0].done():
            self._pending.pop(0).result()
        self._pending.append(self._thread.submit(self._write, name, offset, tensor, copied))

    def _write(self, name: str, offset: int, tensor: Tensor, copied: "torch.cuda.Event | None") -> None:
        checked, n_bytes = None, tensor.nbytes
        try:
            if copied is not None:
                copied.synchronize()
            data = raw(tensor)
            checked = self._checked[name] = self._checker.submit(checksum, data)
            written = 0
            while written < len(data):  # the most that a call writes is 2 GiB
                written += os.pwrite(self._file.fileno(), data[written:], offset + written)
            self._unflushed += n_bytes
            if self._unflushed > FLUSH and self._flushed.done():
                self._flushed.result()
                self._flushed = self._flusher.submit(os.fdatasync, self._file.fileno())
                self._unflushed = 0
        finally:
            if checked is None:
                self._room.give(n_bytes)
            else:
                checked.add_done_callback(partial(given_back, self._room, n_bytes))

    def finish(self) -> None:
        for each in (self._thread, self._checker, self._flusher):
            each.shutdown()
        for written in (*self._pending, self._flushed):
            written.result()
        self.checksums |= {name: checked.result() for name, checked in self._checked.items()}

    def abandon(self) -> None:
        for each in (self._thread, self._checker, self._flusher):
            each.shutdown(cancel_futures=True)
        self._file.close()
