"""Which linears of a block share a scale, and what takes over its inverse."""

import fnmatch
from dataclasses import dataclass
from typing import Any

from quant.errors import InputError
from quant.models.structure.architectures import ARCHITECTURES, SHARING, Fold, Group, architecture_of

INSTEAD = "name another method in its place in study.methods, such as gptq_clip, or write scope: linear"


@dataclass(frozen=True)
class Shared:
    """Linears of one block that share a scale, by full name, and the full name of what takes over its inverse."""

    linears: tuple[str, ...]
    fold: Fold | None = None
    source: str = ""
    also: tuple[str, ...] = ()  # full names of what else reads the input, in 16 bit


def shared_groups(names: list[str], prefix: str, scope: str, config: dict[str, Any]) -> list[Shared]:
    """A block's linears, grouped by scope; what reads a linear's output comes before it, so that a scale folded into
    its rows is known when its steps are chosen."""
    if scope == "linear":
        return [Shared((name,)) for name in names]
    known = architecture_of(config, "scope: shared", SHARING, INSTEAD).groups
    groups = [each for group in known for each in found_in(group, names, prefix)]
    expected = {name for group in groups for name in group.linears}
    if not any("*" in name for group in known for name in group.linears):  # no block lacks what others have
        expected |= {f"{prefix}.{name}" for group in known for name in group.linears}
    differing = expected ^ set(names)
    if differing:
        raise InputError(f"scope: shared does not know what to do with {min(differing)} here; {INSTEAD}")
    return groups[::-1]


def found_in(group: Group, names: list[str], prefix: str) -> list[Shared]:
    """A group's linears of those in a block: all together where they read a norm, each expert's by itself where it
    reads rows of that expert; a block of another kind (dense among mixtures) has none."""
    if group.fold.kind == "norm":
        present = tuple(name for pattern in group.linears for name in fnmatch.filter(names, f"{prefix}.{pattern}"))
        also = tuple(f"{prefix}.{name}" for name in group.also)
        return [Shared(present, group.fold, f"{prefix}.{group.fold.module}", also)] if present else []
    (pattern,) = group.linears
    before, _, after = f"{prefix}.{pattern}".partition("*")
    found = []
    for name in fnmatch.filter(names, f"{prefix}.{pattern}"):
        expert = name.removeprefix(before).removesuffix(after)
        found.append(Shared((name,), group.fold, f"{prefix}.{group.fold.module.replace('*', expert)}"))
    return found


def fused(names: list[str], prefix: str, config: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """By linear of a block, those that readers run as one product with it (q/k/v, gate/up): of architectures that are
    known, what reads one norm."""
    kind = config.get("model_type")
    found: dict[str, tuple[str, ...]] = {name: (name,) for name in names}
    for group in ARCHITECTURES[kind].groups if kind in ARCHITECTURES else ():
        if group.fold.kind == "norm":
            for each in found_in(group, names, prefix):
                found |= dict.fromkeys(each.linears, each.linears)
    return found
