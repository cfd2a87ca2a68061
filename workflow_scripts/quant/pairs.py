"""Which methods are alike but for one choice, and a recipe in words."""

from typing import Any

from quant.configuration import has_effect

# keys of a recipe that change no weight
DESCRIPTIVE = {"description", "label", "note", "caveat"}


def differing_keys(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    """Keys in which two recipes differ with an effect on the weights."""
    return {
        key
        for key in (first.keys() | second.keys()) - DESCRIPTIVE
        if first.get(key) != second.get(key) and (has_effect(key, first) or has_effect(key, second))
    }


def pairs_alike_but(
    recipes: dict[str, dict[str, Any]], first: dict[str, Any], second: dict[str, Any]
) -> list[tuple[str, str]]:
    """Pairs of methods that differ in the keys of `first` and no others; the first of a pair has the values in `first`,
    the other those in `second`. A value may be a function that says whether it fits."""

    def fits(recipe: dict[str, Any], wanted: dict[str, Any]) -> bool:
        return all(
            key in recipe and (value(recipe[key]) if callable(value) else recipe[key] == value)
            for key, value in wanted.items()
        )

    return [
        (a, b)
        for a, recipe_a in recipes.items()
        for b, recipe_b in recipes.items()
        if fits(recipe_a, first) and fits(recipe_b, second) and differing_keys(recipe_a, recipe_b) == first.keys()
    ]


def recipe_words(recipe: dict[str, Any]) -> str:
    """The grid and the rounding of a recipe in a few words, without its salience."""
    size = recipe.get("group_size")
    parts = [
        f"{recipe['bits']} bit" if "bits" in recipe else "",
        "" if size is None else "per channel" if size == -1 else f"groups of {size}",
        {True: "symmetric", False: "asymmetric"}.get(recipe.get("symmetric"), ""),
        "clipped" if recipe.get("clip") else "",
        recipe.get("rounding", "") if recipe.get("rounding") != "nearest" else "",
        f"{100 * recipe['keep_ratio']:g} % kept by {recipe['keep']}" if recipe.get("keep", "none") != "none" else "",
    ]
    return ", ".join(part for part in parts if part) or "recipe unknown"


def full_words(recipe: dict[str, Any]) -> str:
    """The same with its salience."""
    salience = recipe.get("salience")
    return recipe_words(recipe) + (f", salience {salience}" if salience not in (None, "none") else "")
