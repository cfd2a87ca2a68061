"""The files that the table of keys writes, and the table's own nested keys."""

import json

import pytest
from jsonschema import Draft202012Validator

from quant.recipe import keys
from quant.recipe.key import Key, shown
from quant.workflow import recipe_schema
from tests.tiny import ROOT


def test_the_files_are_what_the_table_gives() -> None:
    for path, text in recipe_schema.files(ROOT).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.relative_to(ROOT)}: run `make schema`"


def test_writing_again_changes_nothing() -> None:
    text = (ROOT / "rules/schemas/config.schema.json").read_text(encoding="utf-8")
    assert json.loads(recipe_schema.in_schema(text)) == json.loads(text)
    assert recipe_schema.with_recipes(json.loads(text)) == json.loads(text)


def test_a_key_says_itself() -> None:
    key = Key(0.5, "share of it", above=0, below=1)
    assert key.schema() == {
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
        "description": "share of it",
    }
    assert key.said() == "share of it; default 0.5"
    assert shown({"tune": None, "bits": [4, 8.0], "clip": True}) == "{tune: null, bits: [4, 8], clip: true}"
    assert Key("a", "which", ("a", "b")).said() == "a (default) | b: which"
    sizes = Draft202012Validator(Key(8, "size", minimum=1, apart=-1).schema())
    assert [sizes.is_valid(value) for value in (-1, 0, 1, 64, 1.5, "1")] == [True, False, True, True, False, False]


def test_keys_within_a_key_stand_on_the_page() -> None:
    """Of a list's objects what none may lack has no default."""
    page = recipe_schema.page()
    for name, key in keys.KEYS.items():
        rows = (page + "\n\n").partition(f"\n## {name}\n\n| key |")[2].partition("\n\n")[0].splitlines()[2:]
        assert [row.split("`")[1] for row in rows] == list(key.keys or key.items or {})
        wanted = [own for own, each in (key.items or {}).items() if each.default is not None]
        assert [row.split("`")[1] for row in rows if "must be given" in row] == wanted


def test_an_object_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tune: {epochs: 5}` has the defaults of the keys that it leaves out; null is none of them."""
    tune = Key(None, "tuning", keys={"epochs": Key(10, "passes", minimum=1), "rate": Key(0.01, "its rate", above=0)})
    monkeypatch.setitem(keys.KEYS, "tune", tune)
    held = Draft202012Validator(tune.schema())
    tried = ({"epochs": 5}, None, {}, {"epochs": 0}, {"other": 1}, 3)
    assert [held.is_valid(value) for value in tried] == [True, True, True, False, False, False]
    assert keys.defaults()["tune"] is None
    assert keys.filled({"tune": {"epochs": 5}})["tune"] == {"epochs": 5, "rate": 0.01}
    assert keys.filled({"tune": None})["tune"] is None and keys.filled({}) == {}
    assert "tune" in recipe_schema.words() and "epochs, passes; default 10" in tune.said()
