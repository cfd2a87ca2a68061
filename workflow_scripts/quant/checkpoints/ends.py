"""The two ends of a model, token embedding and output head: which weights they have, on a grid or not, and what a file
holds of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from quant.checkpoints import packed
from quant.checkpoints import vocabulary as held_codes
from quant.errors import InputError
from quant.files.naming import Names
from quant.files.tensorfile import Layout
from quant.recipe.formats import INT
from quant.recipe.grids import Grid
from quant.records.model import Vocabulary


@dataclass(frozen=True)
class End:
    """A weight whose rows are tokens, and its grid. owners: the modules that use it, the one that the file names it
    after first; embeds: whether it is the embedding's, a tied head's with it."""

    owners: list[str]
    grid: Grid
    embeds: bool

    @property
    def name(self) -> str:
        return self.owners[0]


def ends_of(vocabulary: Vocabulary, grid: Grid) -> list[End]:
    """One of both, or two."""
    both = [vocabulary["embedding"], vocabulary["head"]]
    return [End(both, grid, True)] if vocabulary["tied"] else [End(both[:1], grid, True), End(both[1:], grid, False)]


def grid_of(entry: Mapping[str, Any]) -> Grid:
    """A recipe's `embeddings`."""
    return Grid(entry["bits"], entry["group_size"], True, entry.get("format", INT))


def why_not(entry: Mapping[str, Any], vocabulary: Vocabulary, dense: Layout) -> str | None:
    """Why a recipe's `embeddings` cannot be of this model, in one line."""
    if vocabulary["unread"]:
        return f"{vocabulary['unread']}; leave embeddings out for this model"
    grid = grid_of(entry)
    for end in ends_of(vocabulary, grid):
        n_in = dense[f"{end.name}.weight"][1][1]
        if grid.group_size != -1 and n_in % grid.group_size:
            does = f"does not divide the {n_in} channels of {end.name}"
            return f"group_size {grid.group_size} {does}; take -1, or one that does"
    return None


def wanted(entry: Mapping[str, Any] | None, vocabulary: Vocabulary | None, dense: Layout) -> list[End]:
    """What a recipe's `embeddings` quantises of a model; refused where that cannot be."""
    if not entry or vocabulary is None:
        return []
    if reason := why_not(entry, vocabulary, dense):
        if not entry.get("needed", True):
            return []
        raise InputError(f"embeddings: {reason}")
    return ends_of(vocabulary, grid_of(entry))


def taken_by(end: End, dense: Layout) -> Layout:
    """The tensors that a packed file has of one; dense: what the unquantised one has."""
    if end.embeds:
        return held_codes.layout({}, dense, end.owners, end.grid)
    dtype, shape = dense[f"{end.name}.weight"]
    return packed.layout_of(end.name, shape, dtype, end.grid)


def spared_bits(recipe: Mapping[str, Any], vocabulary: Vocabulary, dense: Layout) -> int:
    """What a recipe's codes of embedding and head take less than the 16 bit that they were in."""
    if not recipe["embeddings"] or why_not(recipe["embeddings"], vocabulary, dense):
        return 0
    ends = ends_of(vocabulary, grid_of(recipe["embeddings"]))
    before = {f"{end.name}.weight": dense[f"{end.name}.weight"] for end in ends}
    return packed.bits_of(before) - sum(packed.bits_of(taken_by(end, dense)) for end in ends)


def kept_in(end: End, held: Layout) -> Layout:
    """The tensors that a file has of one."""
    keys = [f"{end.name}.weight", *held_codes.steps_of(end.owners)] if end.embeds else []
    parts = ("weight", "weight_packed", "weight_scale", "weight_shape")
    return {key: held[key] for key in (keys or [f"{end.name}.{part}" for part in parts]) if key in held}


def heads(found: Iterable[End]) -> dict[str, Grid]:
    """The grids of those that are packed as linears are."""
    return {each.name: each.grid for each in found if not each.embeds}


def layout_with(whole: Layout, dense: Layout, found: Iterable[End]) -> Layout:
    """A file's layout with an embedding as codes."""
    for each in found:
        if each.embeds:
            whole = held_codes.layout(whole, dense, each.owners, each.grid)
    return whole


def configured(config: dict[str, Any], found: Iterable[End], naming: Names | None) -> dict[str, Any]:
    """A quantization_config of packed linears that names an embedding too."""
    for each in found:
        if each.embeds:
            config = held_codes.with_group(config, each.owners, each.grid, naming)
    return config


def unread_by_vllm(found: Iterable[End]) -> str | None:
    embeddings = [each.name for each in found if each.embeds]
    return f"{held_codes.NO_READER}, as {embeddings[0]} is" if embeddings else None
