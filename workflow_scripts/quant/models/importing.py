"""Large libraries imported in less time."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Garbage is not looked for meanwhile, a quarter of what transformers and compressed-tensors take to import: their
    modules' hundreds of thousands of objects stay, and each search goes through many of them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
