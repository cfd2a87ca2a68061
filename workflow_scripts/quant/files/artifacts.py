"""Files that say what made them, written whole or not at all, and refused where they are not what a job expects."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import platform
import shlex
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from quant.errors import InputError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
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


def rebuild(path: str | Path) -> str:
    """What to type to make an artifact again."""
    return f"rebuild it: snakemake --cores 1 --force {shlex.quote(str(path))}"


def mark(provenance: Mapping[str, Any]) -> str:
    """16 hexadecimal digits for everything that a provenance says."""
    return digest(json.dumps(provenance, sort_keys=True).encode())


def difference(found: Any, wanted: Any) -> tuple[Any, Any]:
    """Both, or of two tables the first entries that differ."""
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return found, wanted
    key = min(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    first, second = (f"{key}: {table.get(key, 'missing')}" for table in (found, wanted))
    return first, second


def require(path: str | Path, found: Mapping[str, Any], **expected: Any) -> None:
    """Refuses an artifact that was made from something else than expected, however fresh its time stamp is.

    found: its provenance, as read from JSON.
    """
    for key, wanted in expected.items():
        if found.get(key) != wanted:
            has, due = difference(found.get(key), wanted)
            raise InputError(f"{path}: was made from another {key} ({has}; this study's is {due}); {rebuild(path)}")


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it after fsync; nothing is left behind on an exception.

    What a killed job left of the same file goes too; Snakemake's lock sees to it that nobody else writes it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        left.unlink()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise InputError(f"{path}: cannot be written ({error.strerror}); make room there and run again") from None
    finally:
        temporary.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """The content of a file, whole or not at all."""
    with whole(target) as temporary:
        shutil.copyfile(source, temporary)


def write_text(path: str | Path, text: str) -> None:
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """With a checksum of the content beside it, which `read_json` holds it against."""
    write_plain_json(path, {**content, "checksum": digest(json.dumps(content).encode())})


def write_plain_json(path: str | Path, content: Any) -> None:
    """As others read it: a model's config.json."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: str | Path) -> Any:
    """Content of a JSON file, or one line that names it. A file with a checksum must agree with it."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not JSON ({error}); {rebuild(path)}") from None
    checksum = content.pop("checksum", None) if isinstance(content, dict) else None
    if checksum is not None and checksum != digest(json.dumps(content).encode()):
        raise InputError(f"{path}: its content does not match its checksum; {rebuild(path)}")
    return content
