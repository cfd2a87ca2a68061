"""CRC-32 of a tensor's bytes, of a large one's parts side by side."""

import functools
import os
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

PART = 2**24  # bytes that one thread sums
THREADS = 8  # at most: a thread sums 1.6 to 7 GB/s
POLYNOMIAL = 0xEDB88320  # of CRC-32, its lowest bit the highest power


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in memory, not copied where it is contiguous. By few operations of torch: after each,
    a thread waits for its turn."""
    tensor = tensor.detach() if tensor.requires_grad else tensor
    tensor = tensor if tensor.is_contiguous() else tensor.contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def cpus() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def checksum(data: memoryview, copy: memoryview | None = None) -> str:
    """CRC-32 in 8 hexadecimal digits: four times as fast as SHA-256, and bits flip by accident. copy: of the same
    length, gets the bytes, and the sum is of what it got."""
    if len(data) <= PART or cpus() == 1:
        return f"{_part(data, copy):08x}"
    places = [slice(first, first + PART) for first in range(0, len(data), PART)]
    parts = [data[place] for place in places]
    sums = _pool().map(_part, parts, [None if copy is None else copy[place] for place in places])
    total = 0
    for part, own in zip(parts, sums, strict=True):
        total = joined(total, own, len(part))
    return f"{total:08x}"


def _part(data: memoryview, copy: memoryview | None) -> int:
    if copy is None:
        return zlib.crc32(data)
    np.copyto(np.asarray(copy), np.asarray(data))  # other threads go on meanwhile, as they do not for memoryview's own
    return zlib.crc32(copy)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(THREADS, cpus()), "checksum")


def joined(first: int, second: int, n_bytes: int) -> int:
    """The CRC-32 of one content after another, of the CRC-32 of each; n_bytes: of the second."""
    for row in _zeros(n_bytes):
        first = _times(row, first)
    return first ^ second


@functools.cache
def _zeros(n_bytes: int) -> list[tuple[int, ...]]:
    """Maps, one after another, from a CRC-32 to that of the same content and n_bytes zeros after it; a map is what
    becomes of each of its 32 bits."""
    found, power = [], (POLYNOMIAL, *(1 << i for i in range(31)))  # one zero bit
    for _ in range(3):
        power = _squared(power)
    while n_bytes:
        if n_bytes & 1:
            found.append(power)
        power, n_bytes = _squared(power), n_bytes >> 1
    return found


def _times(row: tuple[int, ...], value: int) -> int:
    total = 0
    for each in row:
        if value & 1:
            total ^= each
        value >>= 1
    return total


def _squared(row: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(_times(row, each) for each in row)
