"""A packed recipe that a study has not tried, for one whose best is poor; and YAML that adds to a study."""

from typing import Any, NamedTuple

import yaml

from quant.comparison.pairs import Recipes, has
from quant.recipe import keys


class Idea(NamedTuple):
    """A recipe to try: its name, the keys that make it, why, and YAML that adds it to a study."""

    name: str
    recipe: dict[str, Any]
    why: str
    yaml: str


# from the best of a measured study (experiments/all-methods.yaml) on; each is stored packed
RECIPES: tuple[tuple[str, dict[str, Any], str], ...] = (
    (
        "awq_clip_gptq_shared",
        {"salience": "l2", "clip": True, "rounding": "gptq", "scope": "shared"},
        "as small as plain rounding, with scales that fold away and errors fed back",
    ),
    ("rtn_8bit", {"bits": 8}, "about twice the size of 4 bits, and hardly worse than the original"),
)
MAX_BITS_OF_8 = 8.5  # with its scales and zero points, in groups of 64 or more


def idea(tried: Recipes, configured: Recipes, options: dict[str, Any]) -> Idea | None:
    """The first of RECIPES that no tried recipe is an instance of; options: `choose` of the configuration.

    Its YAML takes the configured method of that name where it is the same recipe, and lifts a limit that it breaks.
    """
    for name, recipe, why in RECIPES:
        common = {key: keys.defaults()[key] for key in ("bits", "symmetric", "keep", "noise_injection")}
        if any(has(other, common | recipe) for other in tried.values()):
            continue
        known = name in configured and has(configured[name], recipe)
        name = name if known or name not in configured else f"{name}_2"
        limit = options.get("max_bits_per_weight")
        lifted = {"choose": {"max_bits_per_weight": MAX_BITS_OF_8}} if "bits" in recipe and limit is not None else {}
        added = {} if known else {"methods": {name: recipe}}
        return Idea(name, recipe, why, written(added | adding(methods=[name]) | lifted))
    return None


def adding(**tables: list[str]) -> dict[str, Any]:
    """A configuration that adds entries to a study's."""
    return {"study": {"add": tables}}


def written(config: dict[str, Any]) -> str:
    """As YAML to paste."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
