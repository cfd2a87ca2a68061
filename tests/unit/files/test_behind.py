"""How many tensors wait to be written, and what of them stays."""

import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from quant.files import behind
from quant.files.behind import SMALL, WAITING, Behind, Room


def test_many_small_tensors_wait_and_few_large_ones() -> None:
    room = Room()
    for _ in range(100):
        room.take(SMALL // 100)
    for _ in range(100):
        room.give(SMALL // 100)
    for _ in range(WAITING):
        room.take(SMALL)
    fifth = threading.Thread(target=room.take, args=(SMALL,))
    fifth.start()
    fifth.join(0.1)
    assert fifth.is_alive()
    room.give(SMALL)
    fifth.join(10)
    assert not fifth.is_alive()


def test_what_is_written_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the file is whole, also where a checksum ends after the write, as it does in memory that is a disk."""
    checksum, written = behind.checksum, threading.Event()

    def late(data: memoryview) -> str:
        written.wait(10)
        return checksum(data)

    monkeypatch.setattr(behind, "checksum", late)
    with (tmp_path / "file").open("wb") as file:
        out, held = Behind(file), list[weakref.ref[np.ndarray]]()
        for i in range(WAITING - 1):
            array = np.full(1000, i, dtype=np.float32)
            held.append(weakref.ref(array))
            out.put(f"{i}", array.nbytes * i, torch.from_numpy(array))
            del array
        while (tmp_path / "file").stat().st_size < 4000 * len(held):
            time.sleep(0.01)
        written.set()
        deadline = time.monotonic() + 10
        while any(each() is not None for each in held) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sum(each() is not None for each in held) == 0
        out.finish()
    assert len(out.checksums) == len(held)
