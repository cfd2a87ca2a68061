"""A task file of lm-evaluation-harness before anything of it runs: one that names code is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from quant.errors import InputError

# keys of a task file that run code or take it from elsewhere, and what stands in their place
CODE = {
    "class": "describe the task in YAML",
    "unsafe_code": "take a task without it",
    "custom_dataset": "name its data by dataset_path",
    "include": "write the keys of that file into this one",
    "hf_evaluate": "take a metric of lm-eval itself (acc, acc_norm)",
    "trust_remote_code": "take a data set without code",
}
KINDS = ("multiple_choice", "loglikelihood")  # output_type: answers that are likelihoods
LOCAL = ("json", "csv", "text", "parquet")  # dataset_path of files that stand beside the YAML


def document(path: str, what: str) -> yaml.Node:
    """A task file's YAML, nothing of it constructed."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise InputError(f"{what}: {path}: cannot be read ({error.strerror}); name a task file of lm-eval") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{what}: {path}: is no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(found, yaml.MappingNode):
        raise InputError(f"{what}: {path}: holds no task; a task file of lm-eval is a table of keys")
    return found


def nodes(node: yaml.Node, key: str = "") -> Iterator[tuple[str, yaml.Node]]:
    """Every node under the key that it stands at, tables' keys among them."""
    yield key, node
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from nodes(name, key)
            yield from nodes(value, str(name.value))
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from nodes(value, key)


def check(path: str, what: str) -> None:
    """Refuses a task file that names code (tags, keys that run it, a data set's script) or is of another kind."""
    for key, node in nodes(document(path, what)):
        where = f"{what}: {path}:{node.start_mark.line + 1}"
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python"):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise InputError(
                f"{where}: {key}: {tag} names code, which is not run here; write templates ({{{{field}}}}) instead"
            )
        value = node.value if isinstance(node, yaml.ScalarNode) else None
        if key in CODE and value not in ("false", "False", "null", "~", "") and node.value != key:
            raise InputError(f"{where}: {key} runs code that is not this file's data; {CODE[key]}")
        if key == "output_type" and value not in KINDS:
            raise InputError(f"{where}: output_type: {value}; write {' or '.join(KINDS)}")
        if key == "dataset_path" and str(value).endswith(".py"):
            raise InputError(f"{where}: dataset_path: {value} is code, which is not run here; name files of data")


def data_files(path: str) -> list[str]:
    """The task file and the local files of its data; those of a hub are none."""
    loaded = plain(path)
    if loaded.get("dataset_path") not in LOCAL:
        return [path]
    named = (loaded.get("dataset_kwargs") or {}).get("data_files") or []
    parts = named.values() if isinstance(named, dict) else [named]
    files = [one for part in parts for one in (part if isinstance(part, list) else [part])]
    return [path, *(str(Path(path).parent / one) for one in files if "://" not in str(one))]


def plain(path: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}  # `check` says what is wrong
    return found if isinstance(found, dict) else {}
