"""Names that a file gives its tensors where those are not the model's: the ones that it was published under, which
transformers changes as it loads them and other readers expect (Mixtral's block_sparse_moe is mlp in transformers).

Whoever reads or writes such a file by `tensorfile` knows the model's names only.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from quant.errors import InputError
from quant.files.artifacts import rebuild

KEY = "names"  # of a file's metadata
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a part of a name that counts layers or experts


def template(name: str) -> tuple[str, list[str]]:
    """A name with # for each number in it, and the numbers."""
    return NUMBER.sub("#", name), NUMBER.findall(name)


def changed(name: str, rules: Mapping[str, str]) -> str:
    """A name by the rule of its template, or, as a part of a linear whose weight has one, by that."""
    form, numbers = template(name)
    found = rules.get(form)
    if found is None:
        stem, _, leaf = form.rpartition(".")
        weight = rules.get(f"{stem}.weight")
        if weight is None or not weight.endswith(".weight"):
            return name
        found = f"{weight.removesuffix('weight')}{leaf}"
    parts = iter(numbers)
    return re.sub("#", lambda _: next(parts), found)


class Names:
    """rules: templates of the model's names, by those that a file has in their place."""

    def __init__(self, rules: Mapping[str, str] | None = None) -> None:
        self.rules = dict(rules or {})
        self._back = {value: key for key, value in self.rules.items()}

    def outside(self, name: str) -> str:
        """What a file calls the model's tensor, or module."""
        return changed(name, self.rules) if self.rules else name

    def inside(self, name: str) -> str:
        """What the model calls a file's."""
        return changed(name, self._back) if self.rules else name

    def both(self, modules: Iterable[str]) -> set[str]:
        """Modules under both names, for readers that know the one or the other."""
        names = set(modules)
        return names | {self.outside(f"{name}.weight").removesuffix(".weight") for name in names}

    def metadata(self) -> dict[str, str]:
        """Of a file that has them; {} where they are the model's."""
        return {KEY: json.dumps(self.rules, sort_keys=True, separators=(",", ":"))} if self.rules else {}


def of(published: Mapping[str, str], every: Iterable[str]) -> Names:
    """From samples, the model's names and what is published in their place; none where that is not one to one for every
    name of the model."""
    rules: dict[str, str] = {}
    for name, other in published.items():
        (form, numbers), (new, same) = template(name), template(other)
        if name != other and (numbers != same or rules.setdefault(form, new) != new):
            return Names()
    found, names = Names(rules), list(every)
    outside = [found.outside(name) for name in names]
    whole = len(set(outside)) == len(names) and [found.inside(name) for name in outside] == names
    return found if whole else Names()


def read(metadata: Mapping[str, str], where: str) -> Names:
    """What a file's metadata says."""
    try:
        rules: Any = json.loads(metadata.get(KEY, "{}"))
        if not all(isinstance(value, str) and value.count("#") == key.count("#") for key, value in rules.items()):
            raise ValueError
    except (ValueError, AttributeError):
        raise InputError(f"{where}: its names are not those of its tensors; {rebuild(where)}") from None
    return Names(rules)
