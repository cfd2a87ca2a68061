"""A configuration held against its JSON schema: the first violation in one line, defaults, and the schema's order."""

import copy
import difflib
import math
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from quant.workflow.values import EXPONENT


def resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """A schema with its $ref followed; keys beside the $ref win."""
    if "$ref" not in schema:
        return schema
    target = root
    for part in schema["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return resolve(target, root) | {key: value for key, value in schema.items() if key != "$ref"}


def fill_defaults(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> None:
    """Puts the schema's defaults into the objects of `value`, in place."""
    schema = resolve(schema, root)
    if not isinstance(value, dict):
        return
    for key, part in schema.get("properties", {}).items():
        part = resolve(part, root)
        if key not in value and "default" in part:
            value[key] = copy.deepcopy(part["default"])
        if key in value:
            fill_defaults(value[key], part, root)
    if isinstance(schema.get("additionalProperties"), dict):
        for entry in value.values():
            fill_defaults(entry, schema["additionalProperties"], root)


def nearest_of(found: Any, valid: list[Any]) -> str:
    """`; did you mean X?` or the list of what is valid."""
    close = difflib.get_close_matches(str(found), [str(item) for item in valid], n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return "valid: " + ", ".join("null" if item is None else str(item) for item in valid)


def quoted(found: Any) -> str:
    """As it stands in a message: its beginning, where it is long."""
    said = repr(found)
    return said if len(said) < 80 else said[:77] + "..."


def explain(error: ValidationError) -> str:
    """One line for a schema violation: where, what was found, what to write instead."""
    where = ".".join(str(part) for part in error.absolute_path) or "the configuration"
    found = quoted(error.instance)
    match error.validator:
        case "additionalProperties":
            valid = sorted(error.schema["properties"])
            key = next(key for key in error.instance if key not in error.schema["properties"])
            owner = error.schema.get("title") if error.absolute_path else None
            found = f"{owner} has no {quoted(key)}" if owner else f"unknown key {quoted(key)}"
            return f"{where}: {found}; {nearest_of(key, valid)}"
        case "enum":
            return f"{where}: {found}; {nearest_of(error.instance, error.validator_value)}"
        case "required":
            key = next(key for key in error.validator_value if key not in error.instance)
            return f"{where}: lacks {key!r}, which it needs"
        case "type":
            wanted = error.validator_value
            said = f"{where}: {found} is not of type {wanted if isinstance(wanted, str) else ' or '.join(wanted)}"
            if isinstance(error.instance, str) and EXPONENT.fullmatch(error.instance):
                number = repr(float(error.instance))
                said += (
                    f", since YAML takes it for text; write {number if '.' in number else number.replace('e', '.0e')}"
                )
            return said
        case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
            sign = {
                "minimum": "at least",
                "exclusiveMinimum": "more than",
                "maximum": "at most",
                "exclusiveMaximum": "less than",
            }
            return f"{where}: {found} must be {sign[error.validator]} {error.validator_value}"
        case "minItems" if error.instance:
            return f"{where}: {found} is a list of one value; write it without the brackets, or name another"
        case "minItems":
            return f"{where}: {found} is an empty list; name something, or leave it out"
        case "pattern":
            return f"{where}: {found} is not of the form {error.validator_value}"
        case "oneOf" if "const" in error.schema["oneOf"][0]:
            rest = error.schema["oneOf"][1]
            other = "a list of different names" if rest.get("type") == "array" else f"at least {rest['minimum']}"
            return f"{where}: {found} must be {error.schema['oneOf'][0]['const']} or {other}"
        case "oneOf":
            ways = [" and ".join(", ".join(way["required"]).rsplit(", ", 1)) for way in error.schema["oneOf"]]
            if any(" and " in way for way in ways):
                return f"{where}: {found} must hold either {', or '.join(ways)}"
            return f"{where}: {found} must hold exactly one of: {', '.join(ways)}"
        case "minProperties" | "maxProperties":
            keys = ", ".join(error.schema.get("properties", {})) or "an entry"
            return f"{where}: {found} must hold exactly one of: {keys}"
        case _:
            return f"{where}: {error.message.splitlines()[0].replace(repr(error.instance), found)}"


def endless(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[str, float]]:
    """Where numbers that are NaN or infinite stand, which no bound of a schema refuses for certain, and those."""
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from endless(part, (*place, key))
    elif isinstance(value, float) and not math.isfinite(value):
        yield ".".join(map(str, place)), value


def first_error(config: Any, schema: dict[str, Any]) -> str | None:
    """The first violation in file order, as one line; None where there is none."""
    for where, value in endless(config):
        return f"{where}: {value} is no number to compute with; write a finite one"
    errors = sorted(
        Draft202012Validator(schema).iter_errors(config), key=lambda error: list(map(str, error.absolute_path))
    )
    return explain(errors[0]) if errors else None


def in_order(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """The same value with its keys in the schema's order, names by the alphabet, however the file had them.

    Snakemake compares parameters by their repr, so an order that means nothing must not show.
    """
    if not isinstance(value, dict):
        return value
    schema = resolve(schema, root)
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    keys = [*(key for key in known if key in value), *sorted(value.keys() - known.keys())]
    others = others if isinstance(others, dict) else {}
    return {key: in_order(value[key], known.get(key, others), root) for key in keys}
