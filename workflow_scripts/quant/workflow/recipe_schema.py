"""What follows from the table of a recipe's keys: the schema's part, the words in config.yaml, and docs/keys.md.

`make schema` writes all three; a test holds the files against the table.
"""

import json
import textwrap
from pathlib import Path
from typing import Any

from quant.recipe import keys
from quant.recipe.choices import CHOICES
from quant.recipe.key import shown

BEGIN, END = "# Recipes' keys (made by `make schema` from quant/recipe/keys.py):", "# (end of the keys)"
WIDTH = 120


def swept(reference: str) -> dict[str, Any]:
    """A value, or a list of at least two different ones."""
    many = {"type": "array", "items": {"$ref": reference}, "minItems": 2, "uniqueItems": True}
    return {"if": {"type": "array"}, "then": many, "else": {"$ref": reference}}


def definitions() -> dict[str, Any]:
    """What a recipe and a method may hold, as the table of keys has it."""
    recipe = {name: key.schema() for name, key in keys.KEYS.items()}
    method = {
        name: swept(f"#/$defs/recipe/properties/{name}") if key.items is None else key.schema()
        for name, key in keys.KEYS.items()
    }
    algorithm = {"enum": ["autoawq"], "description": "A library instead of a recipe: see autoawq."}
    return {
        "recipe": {"type": "object", "additionalProperties": False, "properties": recipe},
        "method": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": {"algorithm": algorithm, **method},
        },
    }


def with_recipes(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the table's definitions, so that an entry of the table is enough."""
    return schema | {"$defs": schema["$defs"] | definitions()}


def in_schema(text: str) -> str:
    """The schema's file with its definitions replaced."""
    for name, definition in definitions().items():
        before, after = text.split(f'\n  "{name}": ')
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
    lines = [BEGIN]
    for name, key in keys.KEYS.items():
        first, later = f"#   {name:<16} ", "#" + " " * 20
        lines += textwrap.wrap(key.said(), WIDTH, initial_indent=first, subsequent_indent=later)
    return "\n".join([*lines, END])


def effect(name: str) -> str:
    """With what a key has an effect, in Markdown."""
    if name in keys.OF_CALIBRATION:
        return "statistics are read" + (", or numbers drawn" if name == "seed" else "")
    if keys.KEYS[name].when is None:
        return ""
    other, values = keys.needed(name)
    return f"`{other}` is " + ("set" if values is None else " or ".join(f"`{shown(value)}`" for value in values))


def bounds(name: str) -> str:
    """What a key may hold, in words."""
    key = keys.KEYS[name]
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
    lines += [row("key", "may hold", "default", "what it is", "has an effect where"), row(*["---"] * 5)]
    for name, key in keys.KEYS.items():
        default = "calibration's" if name in keys.OF_CALIBRATION else f"`{shown(key.default)}`"
        lines.append(row(f"`{name}`", bounds(name), default, key.words, effect(name)))
    for name, (package, choices) in CHOICES.items():
        lines += ["", f"## {name}", "", row("value", "what it does", "reads", "keys of its own"), row(*["---"] * 4)]
        for value, choice in choices.items():
            module = f"[`{value}`](../workflow_scripts/quant/recipe/{package}/{value}.py)"
            own = ", ".join(f"`{key}`" for key in choice.keys)
            lines.append(row("`none`" if value == "none" else module, choice.words, ", ".join(choice.reads), own))
    return "\n".join(lines) + "\n"


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
