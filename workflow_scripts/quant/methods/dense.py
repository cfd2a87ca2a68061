"""Which methods of a study are stored dense on a model, so that none of them is a small file to take."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from quant.files.tensorfile import Layout
from quant.methods.packing import why_dense
from quant.recipe.recipe import Recipe
from quant.recipe.widths import UNTOUCHED
from quant.records.method import GGUF
from quant.records.model import Linears


def shapes_of(linears: Iterable[str], layout: Layout) -> dict[str, tuple[int, ...]]:
    """[out, in] of each; layout: of the unquantised checkpoint."""
    return {name: layout[f"{name}.weight"][1] for name in linears}


def recipes_of(entry: dict[str, Any]) -> Iterator[Recipe | None]:
    """A method's, or a budget's candidates, each on its grid; None for a linear as it is."""
    if entry["budget"] is None:
        yield Recipe.of(entry)
        return
    for each in entry["candidates"]:
        size = entry["group_size"] if each["group_size"] is None else each["group_size"]
        own = {"bits": each["bits"], "group_size": size}
        yield None if each["bits"] == UNTOUCHED else Recipe.of(entry | own)


def dense_by(entry: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], unpacked: Mapping[str, str]) -> str | None:
    """Why a method is stored dense, a budget by each of its candidates."""
    reasons = [why_dense(recipe, shapes, unpacked) for recipe in recipes_of(entry) if recipe is not None]
    return reasons[0] if all(reasons) else None


def best_mistakes(wanted: dict[str, Any], record: Linears, layout: Layout) -> Iterator[str]:
    """Why nothing can be chosen, or not within a budget of bytes. wanted: storage (choose's), gguf (study's), recipes
    by method; layout: of the unquantised checkpoint."""
    storage, recipes = wanted["storage"], wanted["recipes"]
    if storage == GGUF and not wanted["gguf"]:
        yield "choose.storage: gguf: study.gguf names no method; name some, or leave storage out"
    if storage == GGUF:
        return
    shapes, unpacked = shapes_of(record["linears"], layout), record["unpacked"]
    others = {name: entry for name, entry in recipes.items() if name not in wanted["gguf"]}
    reasons = {name: dense_by(entry, shapes, unpacked) for name, entry in others.items()}
    for name, reason in reasons.items():
        if reason and others[name]["budget"] and others[name]["budget"]["size_mb"]:
            yield (
                f"methods.{name}.budget: size_mb: counts a packed file's bytes, and this one would be stored dense: "
                f"{reason}"
            )
    if all(reasons.values()) and (storage is not None or not wanted["gguf"]):
        why = f" ({min(reasons)}: {reasons[min(reasons)]})" if reasons else ""
        yield (
            f"choose: no method of the study is stored packed on this model{why}, so that there is none to take; add "
            "one that is, or make results/report.html, which compares them all the same"
        )
