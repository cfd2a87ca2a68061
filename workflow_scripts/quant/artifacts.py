"""Files that say what made them, written whole or not at all."""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from quant.errors import InputError

DISTRIBUTIONS = ("torch", "transformers", "safetensors", "compressed-tensors", "numpy", "snakemake")


def versions() -> dict[str, str]:
    """Of Python and of the libraries that results depend on, without importing them."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in DISTRIBUTIONS}


def digest(*parts: bytes) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the parts."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it after fsync; nothing is left behind on an exception."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: str | Path) -> Any:
    """Content of a JSON file, or one line that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not JSON ({error}); delete it and run again") from None
