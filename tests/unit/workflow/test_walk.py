"""A recipe's walk from config.yaml to its codes: every function that is handed it, in the order of first calls."""

import re
import sys
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import yaml

from quant.calibration.reader import Statistics
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.models.structure.linears import all_linears, skeleton
from quant.recipe.recipe import Recipe
from quant.workflow import configuration
from tests.tiny import ROOT
from tests.unit.workflow.floors import FLOOR, LIBRARY, package_of

MOST = 3  # climbs: a function on a higher floor than the one before it
ATTRIBUTES = {name for name, value in vars(Recipe).items() if isinstance(value, property)} | {Recipe.at.__name__}
RULES = -1  # the floor of rules and scripts, above all packages


def is_recipe(value: Any) -> bool:
    return isinstance(value, Recipe) or (isinstance(value, dict) and "salience" in value)


class Walk:
    """Functions of the library by their first calls with a recipe among the arguments. Checks, which only refuse, and
    attributes of the recipe are no steps of it."""

    def __init__(self) -> None:
        self.places: list[tuple[int, str]] = []
        self._passed: set[CodeType] = set()  # seen, or none of the library's

    def watch(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code in self._passed:
            return
        path = Path(code.co_filename)
        if not path.is_relative_to(LIBRARY) or code.co_name.startswith(("<", "check")) or code.co_name in ATTRIBUTES:
            self._passed.add(code)
            return
        given = [frame.f_locals[name] for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]]
        if any(map(is_recipe, given)):
            self._passed.add(code)
            self.places.append((FLOOR[package_of(path)], f"{path.relative_to(LIBRARY)}: {code.co_qualname}"))

    def climbs(self) -> list[str]:
        """Where the next function stands on a higher floor."""
        steps = pairwise(self.places)
        return [f"{name} → {following}" for (floor, name), (after, following) in steps if after < floor]


@pytest.fixture(scope="module")
def walk(tiny_checkpoint: Path, statistics: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """Of a recipe with a search, an error fed back and scales that fold."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    schema = yaml.safe_load((ROOT / "rules/schemas/config.schema.json").read_text())
    mine = {"salience": "l2", "clip": True, "rounding": "gptq", "scope": "shared", "group_size": 16, "n_grid": 2}
    config |= {"methods": {"mine": mine}, "sensitivity": {"methods": []}}
    config["study"] |= {"methods": ["mine"], "task_methods": "all"}
    found, folder = Walk(), tmp_path_factory.mktemp("walk")
    read, linears = Statistics(statistics, "tiny", config["linears"]), all_linears(skeleton(tiny_checkpoint))
    sys.setprofile(found.watch)
    try:
        entry = configuration.load(config, schema)["methods"]["mine"]
        found.places.append((RULES, "rules/quantize.smk: quantize"))
        recipe = Recipe.of(entry)
        quantize_checkpoint(
            Source(tiny_checkpoint, linears),
            Output(folder / "checkpoint", folder / "folds"),
            read,
            recipe,
            "cpu",
            {"recipe": entry},
        )
    finally:
        sys.setprofile(None)
    return found


def test_a_recipe_climbs_few_times_on_its_way_to_its_codes(walk: Walk) -> None:
    assert len(walk.climbs()) <= MOST, walk.climbs()


def test_the_document_says_where_it_climbs(walk: Walk) -> None:
    """By the functions that it climbs to."""
    words = (ROOT / "docs/architecture.md").read_text().partition("handed the recipe climbs")[2].partition("## ")[0]
    climbed = [re.split(r"[ .]", climb)[-1] for climb in walk.climbs()]
    assert [name for name in re.findall(r"`(\w+)`", words) if name != "Recipe"] == climbed
