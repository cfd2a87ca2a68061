"""Which methods are alike but for one choice, and a recipe in words."""

from collections.abc import Callable
from typing import Any

from quant.recipe.formats import INT, bits_per_weight
from quant.recipe.keys import OF_CALIBRATION, has_effect, whole
from quant.recipe.widths import UNTOUCHED

Recipes = dict[str, dict[str, Any]]
Finder = Callable[[Recipes], list[tuple[str, str]]]


def differing_keys(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    """Keys in which two recipes differ with an effect on the weights. What one is calibrated on is no difference from
    one that is not."""
    first, second = whole(first), whole(second)
    differing = {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}
    idle = {key for key in OF_CALIBRATION if first.get(key) is None or second.get(key) is None}
    return {key for key in differing - idle if has_effect(key, first) or has_effect(key, second)}


def ordered(recipes: Recipes, fit: Callable[[dict[str, Any], dict[str, Any]], bool]) -> list[tuple[str, str]]:
    """Every two methods whose recipes fit, the first of a pair as the first."""
    return [(a, b) for a, first in recipes.items() for b, second in recipes.items() if fit(first, second)]


def has(recipe: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a recipe has these values; one may be a function that says whether it fits."""
    return all(
        key in recipe and (value(recipe[key]) if callable(value) else recipe[key] == value)
        for key, value in wanted.items()
    )


def pairs_alike_but(recipes: Recipes, first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs of methods that differ in the keys of `first` and no others; the first of a pair has the values in `first`,
    the other those in `second`."""
    return ordered(recipes, lambda a, b: has(a, first) and has(b, second) and differing_keys(a, b) == first.keys())


def alike(key: str, first: Any, second: Any, **both: Any) -> Finder:
    """Pairs alike but for one key; `both`: what the two must have in common."""
    return lambda recipes: [
        (a, b) for a, b in pairs_alike_but(recipes, {key: first}, {key: second}) if has(recipes[a], both)
    ]


def noisy(recipes: Recipes) -> list[tuple[str, str]]:
    """PRAQ with noise on its statistics, and the same without."""
    return ordered(
        recipes,
        lambda a, b: (
            a.get("salience") == "praq"
            and bool(a.get("noise_std"))
            and not b.get("noise_std")
            and differing_keys(a, b) <= {"noise_std", "n_noise_samples"}
        ),
    )


def exact_praq(recipes: Recipes) -> list[tuple[str, str]]:
    """The Jacobian's weights on what is minimised, and the same recipe without them."""
    return ordered(
        recipes,
        lambda a, b: (
            has(a, {"moment": "jacobian"})
            and has(b, {"moment": "plain", "objective": "uniform"})
            and differing_keys(a, b) <= {"moment", "objective", "residual", "plain_share"}
        ),
    )


def smaller_group(recipes: Recipes) -> list[tuple[str, str]]:
    """Alike but for the group size, the smaller one first; per channel is no group."""
    return ordered(
        recipes, lambda a, b: differing_keys(a, b) == {"group_size"} and 0 < a["group_size"] < b["group_size"]
    )


GRID = {"format", "bits", "group_size", "symmetric"}
EQUAL = 0.02  # relative difference in bits per weight


def at_equal_bits(first: str, *others: str) -> Finder:
    """Pairs of this number format and of the others whose grids take the same bits, alike otherwise."""
    return lambda recipes: ordered(
        recipes,
        lambda a, b: (
            a.get("format") == first
            and b.get("format") in others
            and a["budget"] is None is b["budget"]
            and differing_keys(a, b) <= GRID
            and abs(bits_per_weight(a) / bits_per_weight(b) - 1) < EQUAL
        ),
    )


SHARED_WITH_LIBRARIES = ("format", "bits", "group_size", "symmetric", "n_calib", "seed")


def library(algorithm: str, ours: dict[str, Any]) -> Finder:
    """A library, and each of our recipes with these values and with its grid and calibration."""
    default = {"symmetric": False, "format": INT}  # where a library has no such key
    return lambda recipes: ordered(
        recipes,
        lambda theirs, own: (
            theirs.get("algorithm") == algorithm
            and "algorithm" not in own
            and has(own, ours)
            and all((default | own)[key] == (default | theirs)[key] for key in SHARED_WITH_LIBRARIES)
        ),
    )


AUTOAWQ = library("autoawq", {"salience": lambda name: name in ("l1", "l2"), "moment": "plain", "rounding": "nearest"})
LLMCOMPRESSOR = library("llmcompressor", {"rounding": "gptq", "keep": "none", "moment": "plain"})
# the strongest that a packed file holds
AUTOROUND = library("autoround", {"rounding": "gptq", "keep": "none", "scope": "shared"})
TUNED = "tuned"


def steps(recipe: dict[str, Any]) -> set[str]:
    """What fits a recipe further to the calibration text, once its linears are rounded for themselves."""
    taken = {
        "tune": recipe.get("tune") is not None,
        "inputs": recipe.get("inputs") == "sequential",
        "refine": bool(recipe.get("refine")),
        "reconstruct": recipe.get("reconstruct") is not None,
    }
    return {name for name, is_taken in taken.items() if is_taken}


def fitted_further(recipes: Recipes) -> list[tuple[str, str, str]]:
    """(group, first, second): alike but that the first is tuned, or, neither being tuned, takes more steps."""
    own = {name: recipe for name, recipe in recipes.items() if "algorithm" not in recipe}

    def further(group: str, keys: set[str]) -> Finder:
        return lambda found: ordered(
            found,
            lambda a, b: (
                steps(a) > steps(b)
                and ("tune" in steps(a) - steps(b)) == (group == TUNED)
                and differing_keys(a, b) <= keys
            ),
        )

    groups = {TUNED: {"tune"}, "fitted without tuning": {"inputs", "correction", "refine", "reconstruct"}}
    return [(group, *pair) for group, keys in groups.items() for pair in further(group, keys)(own)]


def is_group(size: int) -> bool:
    return size > 0


def embedded(bits: int) -> Callable[[Any], bool]:
    """Whether a recipe's `embeddings` are of so many bits."""
    return lambda entry: entry is not None and entry["bits"] == bits


def calibrated(recipes: Recipes, low: float, high: float) -> list[tuple[str, str]]:
    """Noisy pairs by how many calibration sequences they have."""
    return [pair for pair in noisy(recipes) if low <= recipes[pair[0]]["n_calib"] < high]


def listed_words(found: list[str]) -> str:
    """a, b and c."""
    *most, last = found
    return f"{', '.join(most)} and {last}" if most else last


def widths_words(recipe: dict[str, Any]) -> str:
    """A budget's candidates: 2, 3, 4, 8 and 16 bit, mixed."""
    widths = [str(bits) for bits in dict.fromkeys(each["bits"] for each in recipe["candidates"])]
    return f"{listed_words(widths)} bit" + (", mixed" if len(widths) > 1 else "")


def groups_words(recipe: dict[str, Any]) -> str:
    """The inputs that share a range; of a budget those of its candidates."""
    common = recipe.get("group_size")
    listed = [each for each in recipe["candidates"] if each["bits"] != UNTOUCHED] if recipe.get("budget") else []
    found = [each["group_size"] or common for each in listed] or [common]
    sizes = sorted({int(size) for size in found if size is not None})
    words = ["per channel"] if -1 in sizes else []
    if groups := [str(size) for size in sizes if size != -1]:
        words.append(f"groups of {listed_words(groups)}")
    return " and ".join(words)


def recipe_words(recipe: dict[str, Any]) -> str:
    """The grid and the rounding of a recipe in a few words, without its salience."""
    whole = recipe.get("format", INT) == INT
    width = f"{recipe['bits']} bit" if "bits" in recipe else ""
    parts = [
        widths_words(recipe) if recipe.get("budget") else width if whole else recipe["format"].upper(),
        groups_words(recipe),
        {True: "symmetric", False: "asymmetric", None: ""}[recipe.get("symmetric")] if whole else "",
        "clipped" if recipe.get("clip") else "",
        recipe.get("rounding", "") if recipe.get("rounding") != "nearest" else "",
        f"{100 * recipe['keep_ratio']:g} % kept by {recipe['keep']}" if recipe.get("keep", "none") != "none" else "",
    ]
    return ", ".join(part for part in parts if part) or "recipe unknown"


def full_words(recipe: dict[str, Any]) -> str:
    """The same with its salience."""
    salience = recipe.get("salience")
    return recipe_words(recipe) + (f", salience {salience}" if salience not in (None, "none") else "")
