"""A budget's candidates as methods of their own, and what a budget cannot be."""

from typing import Any

from quant.errors import InputError
from quant.recipe import keys
from quant.recipe.widths import UNTOUCHED

SEARCH_BITS = 4  # for which a budget's common scales are searched where it does not say


def with_candidates(
    methods: dict[str, dict[str, Any]], families: dict[str, list[str]]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]], dict[str, list[str]]]:
    """The methods with every budget's candidates among them, the names that each entry made, candidates first, and the
    candidates of each budget; one that is there by another name is that one, and 16 bits are no method."""
    methods = dict(methods)
    candidates: dict[str, list[str]] = {}
    grown: dict[str, list[str]] = {}
    for family, names in families.items():
        found: dict[str, None] = {}
        for name in names:
            recipe = methods[name]
            if recipe.get("budget") is None:
                continue
            candidates[name] = []
            for each in recipe["candidates"]:
                if each["bits"] == UNTOUCHED:
                    continue
                own = candidate(recipe, each)
                label = f"{family}-bits{each['bits']}"
                label += f"-group_size{each['group_size']}" if each["group_size"] is not None else ""
                twin = next((known for known, entry in methods.items() if entry == own), label)
                if methods.setdefault(twin, own) != own or (twin == label and label in families):
                    raise InputError(
                        f"methods.{family}: its candidate would be {label}, which is another method's name"
                    )
                candidates[name].append(twin)
            found |= dict.fromkeys(candidates[name])
        grown[family] = list(dict.fromkeys([*found, *names]))
    return methods, grown, candidates


def candidate(recipe: dict[str, Any], each: dict[str, Any]) -> dict[str, Any]:
    """The recipe, without its budget, on one candidate's grid."""
    size = recipe["group_size"] if each["group_size"] is None else each["group_size"]
    own = {"budget": None, "candidates": None, "bits": each["bits"], "group_size": size}
    shared = recipe["scope"] == "shared" and not recipe["search_bits"]
    return keys.without_idle(recipe | own | ({"search_bits": SEARCH_BITS} if shared else {}))


def check_budget(name: str, entry: dict[str, Any], recipe: dict[str, Any], common: dict[str, Any]) -> None:
    """entry: a method's own values; recipe: the same completed; common: calibration's n_calib and seed."""
    where, listed = f"methods.{name}", recipe["candidates"]
    if not any(recipe["budget"].values()):
        raise InputError(f"{where}.budget: limits nothing; write {{bits_per_weight: 3.5}} or {{size_mb: 90}}")
    if "bits" in entry:
        raise InputError(
            f"{where}: bits and budget do not go together, since each linear gets its own; write candidates: "
            f"[{{bits: {entry['bits']}}}, …] or leave bits out"
        )
    for key, none in (("inputs", "parallel"), ("tune", None)):
        if recipe[key] != none:
            raise InputError(
                f"{where}: {key} and budget do not go together, since a candidate's linear must not depend on how "
                "others are quantised; leave one of them out"
            )
    grids = [
        (each["bits"], recipe["group_size"] if each["group_size"] is None else each["group_size"]) for each in listed
    ]
    grids = [(bits, -1 if bits == UNTOUCHED else size) for bits, size in grids]
    twice = next((grid for grid in grids if grids.count(grid) > 1), None)
    if twice is not None:
        raise InputError(f"{where}.candidates: two of {twice[0]} bits in groups of {twice[1]}; leave one of them out")
    if all(bits == UNTOUCHED for bits, _ in grids):
        raise InputError(f"{where}.candidates: none is quantised; name some of 2, 3, 4 or 8 bits")
    sizes = {size for bits, size in grids if bits != UNTOUCHED}
    if recipe["scope"] == "shared" and recipe["salience"] != "none" and len(sizes) > 1:
        raise InputError(
            f"{where}.candidates: scope: shared folds one scale into what is before a linear, so that its candidates "
            f"share it and need one group_size, not {' and '.join(map(str, sorted(sizes)))}; give them one, or leave "
            "salience out"
        )
    for key, value in common.items():
        if recipe[key] != value:
            raise InputError(
                f"{where}: {key}: {recipe[key]} and budget do not go together, since linears are weighed on the common "
                f"calibration text; leave {key} out"
            )
