"""What a key of a recipe may hold, in words and as a JSON schema."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object"}
BOUNDS = {"minimum": "minimum", "above": "exclusiveMinimum", "maximum": "maximum", "below": "exclusiveMaximum"}


@dataclass(frozen=True)
class Key:
    """default: None where it is calibration's. values: all there are, or None; bounds otherwise, and `apart` a number
    that is allowed outside of them. when: another key and the values of it with which this one has an effect, None for
    any but that key's default. keys: those of an object (null: none), which then needs no default. items: those of each
    object of a list, all of them wanted but for those whose default is None."""

    default: Any
    words: str
    values: tuple[Any, ...] | None = None
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    apart: int | None = None
    when: tuple[str, tuple[Any, ...] | None] | None = None
    keys: Mapping[str, "Key"] | None = None
    items: Mapping[str, "Key"] | None = None

    def only_with(self, key: str, values: tuple[Any, ...]) -> "Key":
        """The same with `when`."""
        return replace(self, when=(key, values))

    @property
    def kind(self) -> str:
        """Its type in JSON."""
        if self.items is not None:
            return "array"
        return "object" if self.keys is not None else "integer" if self.default is None else KINDS[type(self.default)]

    def schema(self) -> dict[str, Any]:
        """Its JSON schema, without the default, which depends on where it stands."""
        words = {"description": self.words}
        if self.values is not None:
            return {"enum": list(self.values)} | words
        if self.keys is not None:
            inner = {name: key.schema() | {"default": key.default} for name, key in self.keys.items()}
            return {"type": ["object", "null"], "additionalProperties": False, "properties": inner} | words
        if self.items is not None:
            inner = {name: key.schema() for name, key in self.items.items()}
            wanted = [name for name, key in self.items.items() if key.default is not None]
            each = {"type": "object", "additionalProperties": False, "properties": inner, "required": wanted}
            return {"type": ["array", "null"], "items": each, "minItems": 1, "uniqueItems": True} | words
        held = {name: getattr(self, ours) for ours, name in BOUNDS.items() if getattr(self, ours) is not None}
        bounds = held if self.apart is None else {"oneOf": [{"const": self.apart}, held]}
        return {"type": self.kind} | bounds | words

    def said(self) -> str:
        """Its values or default, and what it means, in one line."""
        if self.values is not None:
            names = (f"{shown(v)} (default)" if v == self.default else shown(v) for v in self.values)
            return f"{' | '.join(names)}: {self.words}"
        default = "" if self.default is None else f"; default {shown(self.default)}"
        if self.keys is not None:
            default = "; its keys: " + "; ".join(f"{name}, {key.said()}" for name, key in self.keys.items())
        if self.items is not None:
            default = "; keys of each: " + "; ".join(
                f"{name}, {replace(key, default=None).said()}" for name, key in self.items.items()
            )
        return f"{self.words}{default}"


def shown(value: Any) -> str:
    """As YAML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
