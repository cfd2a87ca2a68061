"""`--config` values by the schema's types: within `--config 'calibration={n_calib: 8}'` Snakemake makes every value a
string. And keys that a file has twice, of which YAML would take the last, and what several files add."""

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError

from quant.errors import InputError

RANGES = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
EXPONENT = re.compile(r"[-+]?\d+\.?\d*[eE][-+]?\d+")  # YAML 1.1 wants 1.0e+2


def at(config: Any, path: Iterable[Any]) -> Any:
    """What stands at a path of keys; None where nothing does."""
    for key in path:
        try:
            config = config[key]
        except (KeyError, IndexError, TypeError):
            return None
    return config


def as_yaml(value: Any) -> Any:
    """The same value with every string as YAML reads it, null and true among them."""
    if isinstance(value, dict):
        return {key: as_yaml(part) for key, part in value.items()}
    if isinstance(value, list):
        return [as_yaml(part) for part in value]
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        return float(value)
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        return value


def is_of_size(error: ValidationError) -> bool:
    """Whether a value is of the kind that is wanted, and no more than too small or too large; or no -1, either."""
    ways = error.validator_value if error.validator == "oneOf" else ()
    return error.validator in RANGES or any("minimum" in way for way in ways)


def typed(config: Mapping[str, Any], given: Mapping[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A copy in which what the command line gave is read as YAML wherever the schema takes no string, and then takes
    it, but for how large it is; the rest stays, for the schema to refuse."""
    copied = copy.deepcopy(dict(config))
    validator = Draft202012Validator(schema)
    for error in validator.iter_errors(copied) if given else ():
        path = list(error.absolute_path)
        read = as_yaml(error.instance)
        if not path or read == error.instance or at(given, path) != error.instance:
            continue
        holder = at(copied, path[:-1])
        before, holder[path[-1]] = holder[path[-1]], read
        others = [each for each in validator.iter_errors(copied) if list(each.absolute_path)[: len(path)] == path]
        if not all(map(is_of_size, others)):
            holder[path[-1]] = before
    return copied


def repeated(node: yaml.Node | None) -> Iterator[tuple[str, list[int]]]:
    """Keys that stand more than once in one mapping, and their lines, from 1."""
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from repeated(each)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[tuple[str, str], list[int]] = {}
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            lines.setdefault((key.tag, key.value), []).append(key.start_mark.line + 1)
        yield from repeated(value)
    yield from ((name, found) for (_, name), found in lines.items() if len(found) > 1)


def check_repeated(path: Path) -> None:
    """Refuses a configuration file that says one thing twice. What is no YAML, Snakemake has refused."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError):
        return
    for name, lines in repeated(node):
        where = " and ".join(map(str, lines))
        raise InputError(
            f"{path}: {name} stands there more than once (lines {where}), and YAML takes the last; keep one"
        )


def added_up(config: dict[str, Any], files: Iterable[Path], read: Callable[[Path], Any]) -> dict[str, Any]:
    """A copy with all that any of the files adds to the study: of a list that several have, merging keeps the last one.
    files: what it was merged from, earlier ones first; read: such a file's content, asked for only where one adds."""
    config, place = copy.deepcopy(config), ("study", "add")
    merged = at(config, place)
    if isinstance(merged, dict):
        for table, last in merged.items():
            lists = [part for file in files if isinstance(part := at(read(file), (*place, table)), list)]
            if lists and isinstance(last, list):
                every = [name for names in (*lists, last) for name in names]
                merged[table] = [name for i, name in enumerate(every) if name not in every[:i]]
    return config
