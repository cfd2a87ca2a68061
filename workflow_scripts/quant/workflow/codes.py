"""What wants weights that are codes and steps alone: tuning of them, and a GGUF file in a checkpoint's place."""

from typing import Any

from quant.errors import InputError
from quant.recipe.formats import IN_GGUF
from quant.recipe.libraries import library_of
from quant.recipe.widths import UNTOUCHED
from quant.workflow.schema import nearest_of


def check_codes(name: str, wanting: str, recipe: dict[str, Any]) -> None:
    """Refuses what wants weights that are codes and steps, of those that are more."""
    folded = recipe["salience"] == "none" or recipe["scope"] == "shared"
    for key, possible, wanted in (
        ("scope", folded or wanting == "reconstruct", "scope: shared"),
        ("keep", recipe["keep"] == "none", "keep: none"),
        ("noise_injection", not recipe["noise_injection"], "noise_injection: 0"),
    ):
        if not possible:
            raise InputError(
                f"methods.{name}: {wanting} needs weights that are codes and steps alone, not {key}: {recipe[key]}; "
                f"write {wanted}, or leave {wanting} out"
            )


def check_gguf(name: str, run: list[str], methods: dict[str, dict[str, Any]]) -> None:
    """Refuses what the study does not run, and a grid that GGUF has no blocks for. run: names of the study's methods;
    methods: every recipe."""
    where = f"study.gguf: {name}"
    if name not in run:
        raise InputError(f"study.gguf: the study runs no {name!r}; {nearest_of(name, run)}")
    recipe = methods[name]
    if (library := library_of(recipe)) is not None:
        raise InputError(
            f"{where}: a checkpoint of {library.title} is stored dense here, and GGUF stores codes; take it out of "
            "study.gguf"
        )
    check_codes(name, "study.gguf", recipe)
    if recipe["budget"] is not None and recipe["budget"]["size_mb"]:
        raise InputError(
            f"{where}: its budget counts the bytes of the checkpoint, not the file's; write bits_per_weight in place "
            "of size_mb"
        )
    listed = [{key: value for key, value in each.items() if value is not None} for each in recipe["candidates"] or [{}]]
    grids = [recipe | each for each in listed if each.get("bits") != UNTOUCHED]
    for grid in [*grids, *(recipe["tensor_types"] or [])]:
        size = IN_GGUF.get((grid["format"], grid["bits"], grid["symmetric"]))
        if size is None or (grid["group_size"] > 0 and grid["group_size"] % size):
            zeros = "" if grid["symmetric"] else " with zero points"
            raise InputError(
                f"{where}: GGUF has no blocks for {grid['bits']} bits{zeros}, format: {grid['format']}, in groups of "
                f"{grid['group_size']}; it has some for 4 bits and symmetric 8 bits in groups of a multiple of 32, for "
                "iq4_nl and q3_k: take the method out, or write one of these"
            )
