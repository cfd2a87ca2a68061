"""How large a file of text may be."""

from pathlib import Path

from quant.errors import InputError
from quant.files.units import megabytes

LARGEST = 100  # 10⁶ bytes; splitting one text for two uses takes 60 bytes and 1 µs of each


def check_size(path: str) -> None:
    """Refuses a file that is read whole, and whose text a study would take a small part of."""
    size = Path(path).stat().st_size / 1e6
    if size > LARGEST:
        raise InputError(
            f"{path}: has {megabytes(size)} MB, and a text is read whole, so that {LARGEST} are taken at most; a study "
            "reads about 1 MB of it: give a part (head -n 20000 FILE > PART)"
        )
