"""Texts in files: UTF-8 as it is, or a field of JSON lines."""

import codecs
import io
import json
import logging
import re
from pathlib import Path
from typing import Any

from quant.data.file_size import check_size
from quant.errors import InputError, one_line

logger = logging.getLogger("quant")

JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")
FILES = {  # files of texts that are none, by their first bytes: what they are, and what to do
    b"PAR1": ("Parquet", "save it as JSON lines (pandas.read_parquet(OLD).to_json(NEW, orient='records', lines=True))"),
    b"\x1f\x8b": ("gzip", "unpack it (gunzip -k OLD)"),
    b"PK\3\4": ("zip", "unpack it, or save a document as plain text"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unpack it (zstd -d OLD)"),
    b"%PDF": ("PDF", "save it as plain text (pdftotext OLD NEW)"),
}
FIELD = "text"  # read where none is named and every line has it
# byte order marks of what is no UTF-8; UTF-32's begins with UTF-16's
OTHERS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def decoded(path: str) -> str:
    """A UTF-8 file's text, line ends as line feeds; a byte order mark is none of it."""
    if Path(path).is_dir():
        raise InputError(f"{path}: cannot be read (it is a directory); name the text files in it")
    try:
        check_size(path)
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a text file") from None
    for mark, name in OTHERS.items():
        if content.startswith(mark):
            raise InputError(
                f"{path}: is not UTF-8 text but {name}; save it as UTF-8 (iconv -f {name} -t UTF-8 OLD > NEW)"
            )
    text = content.removeprefix(codecs.BOM_UTF8)
    skipped = len(content) - len(text)
    for mark, (kind, instead) in FILES.items():
        if content.startswith(mark):
            raise InputError(f"{path}: is not UTF-8 text but a {kind} file; {instead}")
    if b"\0" in text:
        raise InputError(
            f"{path}: is not UTF-8 text (a zero byte at byte {text.index(0) + skipped}: UTF-16, or no text); save it "
            "as UTF-8"
        )
    try:
        return io.StringIO(text.decode(), newline=None).read()
    except UnicodeDecodeError as error:
        at = error.start + skipped
        raise InputError(f"{path}: is not UTF-8 text ({error.reason} at byte {at}); save it as UTF-8") from None


def json_lines(path: str, lines: list[str]) -> list[tuple[int, dict[str, Any]]]:
    """The objects of JSON lines, with their line numbers; empty lines are none."""
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: line {number} is no JSON ({one_line(error)}); write an object in each line, or plain text in "
                "a .txt file"
            ) from None
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number} is a JSON {type(row).__name__}, not an object with a text in it")
        rows.append((number, row))
    return rows


def field_of(path: str, lines: list[str], field: str | None) -> list[str]:
    """A field of every line."""
    rows = json_lines(path, lines)
    wanted = field or FIELD
    found = []
    for number, row in rows:
        text = row.get(wanted)
        if not isinstance(text, str):
            held = f"holds a {type(text).__name__} there" if wanted in row else "has none"
            named = ", ".join(key for key, value in row.items() if isinstance(value, str)) or "none"
            raise InputError(
                f"{path}: holds JSON lines, whose field {wanted!r} is read, and line {number} {held}; write field: "
                f"NAME beside files: in texts (its fields that hold text: {named})"
            )
        if lone := re.search("[\ud800-\udfff]", text):
            raise InputError(
                f"{path}: line {number} has {lone[0]!a} in {wanted!r}, half of a character; leave that out"
            )
        found.append(text)
    if field is None:
        logger.info("%s: holds JSON lines; reads field %r of each", path, FIELD)
    return found


def is_object(line: str) -> bool:
    """Whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def looks_like_json_lines(lines: list[str]) -> bool:
    """Whether most lines are JSON objects, the first among them; a file may have been cut."""
    full = [line for line in lines if line.strip()]
    if not full or not is_object(full[0]):
        return False
    return 2 * sum(line.lstrip().startswith("{") and is_object(line) for line in full) > len(full)


def refuse_tables(path: str, text: str) -> None:
    """Refuses one JSON value over several lines, and columns by the file's name: their marks are no text."""
    if path.lower().endswith(TABLES):
        raise InputError(f"{path}: is a table, whose columns are not read; save its texts as JSON lines (.jsonl)")
    if not text.lstrip().startswith(("[", "{")):
        return
    try:
        kind = type(json.loads(text)).__name__
    except (ValueError, RecursionError):
        return
    raise InputError(f"{path}: holds one JSON {kind}, no text; save it as JSON lines, an object a line (.jsonl)")


def read_file(path: str, field: str | None = None) -> list[str]:
    """The lines of a UTF-8 file, line ends kept; of JSON lines a field's texts.

    field: what to read of each JSON line. A file named .jsonl or .ndjson is JSON lines; another one that looks like
    them is refused unless a field is named, since its braces and keys are no text.
    """
    lines = io.StringIO(decoded(path), newline="\n").readlines()
    if field is not None or path.lower().endswith(JSON_LINES):
        lines = field_of(path, lines, field)
    elif looks_like_json_lines(lines):
        raise InputError(
            f"{path}: holds JSON lines; write field: NAME beside files: in texts, for the field to read (the first "
            f"line has {', '.join(json.loads(next(line for line in lines if line.strip())))})"
        )
    else:
        refuse_tables(path, "".join(lines))
    if not any(line.strip() for line in lines):
        raise InputError(f"{path}: holds no text; name a file with words in it")
    return lines
