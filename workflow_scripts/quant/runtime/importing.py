"""Large libraries imported in less time."""

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from unittest import mock


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """For imports alone. Garbage is not looked for meanwhile, a quarter of what transformers and compressed-tensors
    take: their modules' hundreds of thousands of objects stay, and each search goes through many of them; after it none
    goes through what was there. And nothing is compiled: for one function of FP4 compressed-tensors imports all of
    torch's compiler, a fifth.

    Source of the switch: torch's documentation (TORCHDYNAMO_DISABLE); it is looked at where a function is decorated.
    """
    enabled, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        with mock.patch.dict(os.environ, TORCHDYNAMO_DISABLE="1"):
            yield
    finally:
        if len(sys.modules) > before:  # else what lives may be a model, which is to go
            gc.freeze()
        if enabled:
            gc.enable()
