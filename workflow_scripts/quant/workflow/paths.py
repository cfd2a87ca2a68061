"""Files and folders that a configuration names, found from the file that names them, wherever the workflow runs."""

import copy
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from quant.errors import InputError
from quant.workflow.values import at

TEXTS = (".txt", ".md", ".jsonl")  # a text of such a name is no entry of the table


def short(path: Path) -> str:
    """Relative to the working directory where it is below it, else absolute, so that a moved folder is not stale."""
    whole = Path(os.path.normpath(Path.cwd() / path))
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)


def home(value: str) -> Path:
    """The path with ~ as the user's folder."""
    try:
        return Path(value).expanduser()
    except RuntimeError:  # ~name of nobody
        return Path(value)


def found(value: str, folder: Path) -> str:
    """A path as a file in `folder` names it: from there, else from the working directory if it is there."""
    path = home(value)
    here = not (folder / path).exists() and path.exists()
    return short(path if here else folder / path)


def text_users(config: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The keys under which a text is used."""
    yield ("calibration", "text")
    datasets = config.get("datasets")
    yield from (("datasets", str(name), "text") for name in datasets or ()) if isinstance(datasets, dict) else ()


def places(config: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """The keys under which paths stand."""

    def names(table: str) -> list[str]:
        return list(config[table]) if isinstance(config.get(table), dict) else []

    for name in names("models"):
        yield ("models", name, "source", "directory")
        yield ("models", name, "source", "gguf", "path")
    yield from (("environments", name) for name in names("environments"))
    yield from (("tasks", name, "yaml") for name in names("tasks"))
    for where in [*(("texts", name) for name in names("texts")), *text_users(config)]:
        files = at(config, (*where, "files"))
        yield from ((*where, "files", index) for index in range(len(files) if isinstance(files, list) else 0))
        if str(at(config, (*where, "hub", "path"))).startswith(("~", ".")):  # else an id
            yield (*where, "hub", "path")


def folder_of(place: Sequence[Any], value: str, files: Sequence[Path], read: Callable[[Path], Any]) -> Path:
    """The folder of the last file that says `value` there; the working directory where the command line does."""
    return next((file.parent for file in reversed(files) if at(read(file), place) == value), Path())


def anchored(config: dict[str, Any], files: Sequence[Path], read: Callable[[Path], Any]) -> dict[str, Any]:
    """A copy whose paths hold from the working directory. files: what it was merged from, later ones over earlier
    ones; read: such a file's content, asked for only where there is a path."""
    config = copy.deepcopy(config)
    for place in [*places(config), *text_users(config)]:
        value = at(config, place)
        is_text = place[-1] == "text"  # a name, or a path in its place
        if not isinstance(value, str) or not value or (is_text and value in (config.get("texts") or {})):
            continue
        path = found(value, folder_of(place, value, files, read))
        holder = at(config, place[:-1])
        if not is_text:
            holder[place[-1]] = path
        elif Path(path).is_file():
            holder["text"] = {"files": [path]}
        elif "/" in value or Path(value).suffix in TEXTS:
            what = "is a directory" if Path(path).is_dir() else "no such file, and no entry of texts"
            raise InputError(f"{'.'.join(place)}: {path}: {what}; give a text file, or the name of an entry of texts")
    return config


def named_texts(config: dict[str, Any]) -> dict[str, Any]:
    """A copy in which a text that stands where it is used is an entry of `texts`, called by that place."""
    config = copy.deepcopy(config)
    for place in text_users(config):
        text = at(config, place)
        if isinstance(text, dict) and isinstance(config.get("texts"), dict):
            name = ".".join(place)
            config["texts"][name] = text
            at(config, place[:-1])["text"] = name
    return config


def check_braces(path: str | Path, where: str = "") -> None:
    """Refuses a path in which Snakemake sees a wildcard, and which it has no way to quote; where: what goes before."""
    if found := re.search(r"\{[^{}]*\}", str(path)):
        raise InputError(
            f"{where}{path}: Snakemake takes {found[0]} in a path for a wildcard; rename it, or name a link to it "
            "without braces"
        )


def check_input(path: str | Path, where: str) -> None:
    """Refuses a user's file that no job could read; where: what goes before."""
    check_braces(path, where)
    if Path(path).exists() and not os.access(path, os.R_OK):
        raise InputError(f"{where}{path}: cannot be read (Permission denied); chmod a+r makes it so")


def check_place(folder: Path) -> None:
    """Refuses a working directory that takes no results, in which Snakemake itself would end in a traceback."""
    for path in (folder / ".snakemake", folder / "results"):
        there = path if path.exists() else folder
        if not os.access(there, os.W_OK | os.X_OK):
            raise InputError(
                f"{there.absolute()}: cannot be written; make it so, or run in another folder (--directory FOLDER, "
                "make: IN=FOLDER)"
            )
