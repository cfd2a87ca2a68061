"""A checksum taken in parts is that of the whole."""

import os
import zlib

import pytest

from quant.files import checksums


@pytest.mark.parametrize("part", [1, 7, 64, 1000])
def test_parts_give_the_sum_of_the_whole(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "PART", part)
    monkeypatch.setattr(checksums, "cpus", lambda: 2)
    for n in (0, 1, 2, part, part + 1, 3 * part - 1, 500):
        data = memoryview(os.urandom(n))
        copy = bytearray(n)
        assert checksums.checksum(data) == checksums.checksum(data, memoryview(copy)) == f"{zlib.crc32(data):08x}"
        assert copy == data
