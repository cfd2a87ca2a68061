"""What follows from the table of a recipe's keys: the schema's part, the words in config.yaml, and docs/keys.md.

`make schema` writes all three; a test holds the files against the table.
"""

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quant.recipe import keys
from quant.recipe.choices import CHOICES
from quant.recipe.key import Key, shown
from quant.recipe.libraries import LIBRARIES, Library

BEGIN, END = "# Recipes' keys (made by `make schema` from quant/recipe/keys.py):", "# (end of the keys)"
WIDTH = 120


def swept(reference: str) -> dict[str, Any]:
    """A value, or a list of at least two different ones."""
    many = {"type": "array", "items": {"$ref": reference}, "minItems": 2, "uniqueItems": True}
    return {"if": {"type": "array"}, "then": many, "else": {"$ref": reference}}


ALGORITHM = {"enum": [*LIBRARIES], "description": "A library instead of a recipe."}


def definitions() -> dict[str, Any]:
    """What a recipe, a method and one that is a library may hold, as the tables of keys and libraries have it."""
    recipe = {name: key.schema() for name, key in keys.KEYS.items()}
    method = {
        name: swept(f"#/$defs/recipe/properties/{name}") if key.items is None else key.schema()
        for name, key in keys.KEYS.items()
    }
    return {
        "recipe": {"type": "object", "additionalProperties": False, "properties": recipe},
        "method": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": {"algorithm": ALGORITHM, **method},
        },
        "library": {name: {"type": "object", "properties": own_schema(one)} for name, one in LIBRARIES.items()},
        "entry": entry(),
        "environments": {
            "type": "object",
            "additionalProperties": False,
            "properties": {name: {"type": "string", "minLength": 1} for name in LIBRARIES},
        },
    }


def own_schema(library: Library) -> dict[str, Any]:
    """Of each of a library's own keys."""
    return {name: key.schema() for name, key in library.keys.items()}


def entry() -> dict[str, Any]:
    """An entry of `methods`: by its algorithm what that library takes, else a recipe."""
    chain: dict[str, Any] = {"properties": {"algorithm": ALGORITHM}}
    for name, library in reversed(LIBRARIES.items()):
        own = {key: swept(f"#/$defs/library/{name}/properties/{key}") for key in library.keys}
        common = {key: {"$ref": f"#/$defs/method/properties/{key}"} for key in keys.OF_CALIBRATION}
        takes = {
            "title": library.title,
            "additionalProperties": False,
            "properties": {"algorithm": {"const": name}, **own, **common},
        }
        chain = {"if": {"properties": {"algorithm": {"const": name}}}, "then": takes, "else": chain}
    return {"if": {"type": "object", "required": ["algorithm"]}, "then": chain, "else": {"$ref": "#/$defs/method"}}


def with_recipes(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the table's definitions, so that an entry of the table is enough."""
    return schema | {"$defs": schema["$defs"] | definitions()}


def in_schema(text: str) -> str:
    """The schema's file with its definitions replaced."""
    for name, definition in definitions().items():
        before, after = text.rsplit(f'\n  "{name}": ', 1)  # $defs stand last
        _, end = json.JSONDecoder().raw_decode(after)
        text = f'{before}\n  "{name}": {dumped(definition, 2, len(name) + 4)}{after[end:]}'
    return text


def dumped(value: Any, indent: int = 0, before: int = 0) -> str:
    """JSON with what fits on a line on one; before: columns in front of it."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or indent + before + len(line) < WIDTH:
        return line
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        parts = [f"{json.dumps(k)}: {dumped(v, indent + 1, len(json.dumps(k)) + 2)}" for k, v in value.items()]
        return "{\n" + ",\n".join(pad + part for part in parts) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(pad + dumped(each, indent + 1) for each in value) + "\n" + " " * indent + "]"


def words() -> str:
    """The comment in config.yaml: a paragraph a key."""
    lines = [BEGIN, *said(keys.KEYS)]
    for name, library in LIBRARIES.items():
        title = f"# algorithm: {name}: {library.title} {library.version} itself: {library.words}. Of n_calib, seed and:"
        lines += [*textwrap.wrap(title, WIDTH, subsequent_indent="# "), *said(library.keys)]
    return "\n".join([*lines, END])


def said(known: Mapping[str, Key]) -> list[str]:
    """A paragraph a key."""
    wraps = (
        textwrap.wrap(key.said(), WIDTH, initial_indent=f"#   {name:<16} ", subsequent_indent="#" + " " * 20)
        for name, key in known.items()
    )
    return [line for lines in wraps for line in lines]


def effect(name: str, known: Mapping[str, Key] = keys.KEYS) -> str:
    """With what a key has an effect, in Markdown."""
    if name in keys.OF_CALIBRATION:
        return "statistics are read" + (", or numbers drawn" if name == "seed" else "")
    if known[name].when is None:
        return ""
    other, values = keys.needed(name, known)
    return f"`{other}` is " + ("set" if values is None else " or ".join(f"`{shown(value)}`" for value in values))


def bounds(key: Key) -> str:
    """What a key may hold, in words."""
    if key.values is not None:
        return ", ".join(f"`{shown(value)}`" for value in key.values)
    signs = {"at least": key.minimum, "above": key.above, "at most": key.maximum, "below": key.below}
    said = [f"{sign} {shown(value)}" for sign, value in signs.items() if value is not None]
    apart = [] if key.apart is None else [f"or {key.apart}"]
    return " ".join([key.kind, *([", ".join(said)] if said else []), *apart])


def row(*cells: str) -> str:
    """Of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page() -> str:
    """docs/keys.md."""
    lines = ["# A recipe's keys", "", "Made by `make schema` from `keys.py` and `choices.py` in quant/recipe.", ""]
    lines += keys_table(keys.KEYS)
    for name, key in keys.KEYS.items():
        if inner := key.keys or key.items:
            lines += ["", f"## {name}", "", row("key", "may hold", "default", "what it is"), row(*["---"] * 4)]
            for own, each in inner.items():
                default = "" if each.default is None else "must be given" if key.items else f"`{shown(each.default)}`"
                lines.append(row(f"`{own}`", bounds(each), default, each.words))
    for name, (package, choices) in CHOICES.items():
        lines += ["", f"## {name}", "", row("value", "what it does", "reads", "keys of its own"), row(*["---"] * 4)]
        for value, choice in choices.items():
            module = f"[`{value}`](../workflow_scripts/quant/recipe/{package}/{value}.py)"
            own = ", ".join(f"`{key}`" for key in choice.keys)
            lines.append(row("`none`" if value == "none" else module, choice.words, ", ".join(choice.reads), own))
    for name, library in LIBRARIES.items():
        lines += ["", f"## algorithm: {name}", "", f"{library.title} {library.version}: {library.words}.", ""]
        lines += keys_table(library.keys)
    return "\n".join(lines) + "\n"


def keys_table(known: Mapping[str, Key]) -> list[str]:
    """A row a key."""
    lines = [row("key", "may hold", "default", "what it is", "has an effect where"), row(*["---"] * 5)]
    for name, key in known.items():
        default = "calibration's" if name in keys.OF_CALIBRATION else f"`{shown(key.default)}`"
        nested = f"{'list of objects' if key.items else 'object'} of [these keys](#{name})"
        holds = nested if key.keys or key.items else bounds(key)
        lines.append(row(f"`{name}`", holds, default, key.words, effect(name, known)))
    return lines


def between(text: str, block: str) -> str:
    """config.yaml with its block of keys replaced."""
    before, rest = text.split(BEGIN)
    return before + block + rest.split(END)[1]


def files(root: Path) -> dict[Path, str]:
    """What each file that the table writes should hold."""
    schema, config = root / "rules/schemas/config.schema.json", root / "config.yaml"
    return {
        schema: in_schema(schema.read_text(encoding="utf-8")),
        config: between(config.read_text(encoding="utf-8"), words()),
        root / "docs/keys.md": page(),
    }


if __name__ == "__main__":
    for path, text in files(Path(__file__).parents[3]).items():
        path.write_text(text, encoding="utf-8")
