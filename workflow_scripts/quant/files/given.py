"""A JSON file that somebody else wrote, refused in one line where it is none."""

import json
from pathlib import Path
from typing import Any

from quant.errors import InputError, one_line

AGAIN = "copy or download it again"


def json_object(path: Path, missing: str) -> dict[str, Any]:
    """A JSON file that holds an object; `missing` says what to do where there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {missing}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not readable JSON ({one_line(error)}); {AGAIN}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a JSON {type(value).__name__} where an object is due; {AGAIN}")
    return value
