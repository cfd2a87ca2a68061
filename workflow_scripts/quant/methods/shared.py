"""Which linears of a block share a scale, and what takes over its inverse."""

from dataclasses import dataclass
from typing import Any

from quant.errors import InputError
from quant.models.architectures import Fold, architecture_of


@dataclass(frozen=True)
class Shared:
    """Linears of one block that share a scale, by full name, and the full name of what takes over its inverse."""

    linears: tuple[str, ...]
    fold: Fold | None = None
    source: str | None = None


def shared_groups(names: list[str], prefix: str, scope: str, config: dict[str, Any]) -> list[Shared]:
    """A block's linears, grouped by scope; what reads a linear's output comes before it, so that a scale folded into
    its rows is known when its steps are chosen."""
    if scope == "linear":
        return [Shared((name,)) for name in names]
    groups = [
        Shared(tuple(f"{prefix}.{name}" for name in group.linears), group.fold, f"{prefix}.{group.fold.module}")
        for group in architecture_of(config, "scope: shared").groups
    ]
    if not groups:
        raise InputError(f"scope: shared is not known for model_type {config['model_type']!r}; use scope: linear")
    differing = {name for group in groups for name in group.linears} ^ set(names)
    if differing:
        raise InputError(f"scope: shared does not know what to do with {min(differing)} here; use scope: linear")
    return groups[::-1]
