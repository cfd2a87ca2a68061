"""A budget's candidates as methods of their own, and what a budget cannot be."""

from typing import Any

from quant.errors import InputError
from quant.recipe import keys
from quant.recipe.widths import UNTOUCHED

WITHOUT = {"budget": None, "candidates": None, "swaps": None}
SEARCH_BITS = 4  # for which a budget's common scales are searched where it does not say


def with_candidates(
    methods: dict[str, dict[str, Any]], families: dict[str, list[str]]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]], dict[str, list[str]]]:
    """The methods with every budget's candidates among them, the names that each entry made, one width for all first,
    and the candidates of each budget; one that is there by another name is that one, and 16 bits are no method.

    One width for all is a candidate, or, where the recipe runs the model, the recipe itself at that width; a candidate
    then rounds each linear alone, and is not measured as a method."""
    methods = dict(methods)
    candidates: dict[str, list[str]] = {}
    grown: dict[str, list[str]] = {}

    def add(family: str, label: str, own: dict[str, Any]) -> str:
        twin = next((known for known, entry in methods.items() if entry == own), label)
        if methods.setdefault(twin, own) != own or (twin == label and label in families):
            raise InputError(
                f"methods.{family}: its candidate would be {label}, which is another method's name; rename that"
            )
        return twin

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
                label = f"{family}-bits{each['bits']}"
                label += f"-group_size{each['group_size']}" if each["group_size"] is not None else ""
                runs = keys.runs_model(recipe)
                candidates[name].append(add(family, f"{label}-alone" if runs else label, candidate(recipe, each)))
                if not runs or 0 < recipe["budget"]["bits_per_weight"] < each["bits"]:
                    continue
                found |= {add(family, label, at_one_width(recipe, each)): None}
            found |= {} if keys.runs_model(recipe) else dict.fromkeys(candidates[name])
        grown[family] = list(dict.fromkeys([*found, *names]))
    return methods, grown, candidates


def at_one_width(recipe: dict[str, Any], each: dict[str, Any]) -> dict[str, Any]:
    """The recipe, without its budget, with one candidate's grid for every linear."""
    size = recipe["group_size"] if each["group_size"] is None else each["group_size"]
    return keys.without_idle(recipe | {**WITHOUT, "bits": each["bits"], "group_size": size})


def candidate(recipe: dict[str, Any], each: dict[str, Any]) -> dict[str, Any]:
    """The recipe of one candidate, which rounds each linear alone."""
    alone: dict[str, Any] = {"inputs": "parallel", "tune": None}
    shared = recipe["scope"] == "shared" and not recipe["search_bits"]
    alone |= {"search_bits": SEARCH_BITS} if shared else {}
    sizes = {entry["group_size"] for entry in recipe["candidates"] if entry["bits"] != UNTOUCHED}
    shared = recipe["scope"] == "shared" and not recipe["search_group_size"] and len(sizes) > 1
    alone |= {"search_group_size": recipe["group_size"]} if shared else {}
    return at_one_width(recipe | alone, each)


def unmeasured(name: str) -> str:
    """Why a budget's method cannot be made of a study none of whose methods reads the end loss: its candidates would be
    quantised and measured first."""
    return (
        f"methods.{name}: a budget chooses by what the end loss predicts, which is measured where a method of the "
        f"study reads it; name {name} in study.methods"
    )


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
    if keys.runs_model(recipe) and any(each["bits"] == UNTOUCHED for each in listed):
        running = "inputs: sequential" if recipe["inputs"] == "sequential" else "tune"
        raise InputError(
            f"{where}.candidates: {UNTOUCHED} bits and {running} do not go together, since it quantises every linear; "
            "name 2, 3, 4 or 8 bits"
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
    wanted = 0 if recipe["swaps"] is None else recipe["swaps"]["sequences"]
    if wanted > common["n_calib"]:
        raise InputError(
            f"{where}.swaps: sequences: {wanted}: calibration.n_calib is {common['n_calib']}; write no more"
        )
    for key, value in common.items():
        if recipe[key] != value:
            raise InputError(
                f"{where}: {key}: {recipe[key]} and budget do not go together, since linears are weighed on the common "
                f"calibration text; leave {key} out"
            )
