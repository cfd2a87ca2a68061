"""Token embedding and output head: which weights they have, on a grid or not, and what a file holds of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from quant.checkpoints import embedding_codes, packed
from quant.errors import InputError
from quant.files.naming import Names
from quant.files.tensorfile import Layout
from quant.recipe.formats import INT
from quant.recipe.grids import Grid
from quant.records.model import Embeddings


@dataclass(frozen=True)
class Embedding:
    """A weight whose rows are tokens, and its grid. owners: the modules that use it, the one that the file names it
    after first; is_input: whether it is the embedding's, a tied head's with it."""

    owners: list[str]
    grid: Grid
    is_input: bool

    @property
    def name(self) -> str:
        return self.owners[0]


def embeddings_of(embeddings: Embeddings, grid: Grid) -> list[Embedding]:
    """One of both, or two."""
    embedding, head = embeddings["embedding"], embeddings["head"]
    if embeddings["tied"]:
        return [Embedding([embedding, head], grid, True)]
    return [Embedding([embedding], grid, True), Embedding([head], grid, False)]


def grid_of(entry: Mapping[str, Any]) -> Grid:
    """A recipe's `embeddings`."""
    return Grid(entry["bits"], entry["group_size"], True, entry.get("format", INT))


def why_not(entry: Mapping[str, Any], embeddings: Embeddings, dense: Layout) -> str | None:
    """Why a recipe's `embeddings` cannot be of this model, in one line."""
    if embeddings["unread"]:
        return f"{embeddings['unread']}; leave embeddings out for this model"
    grid = grid_of(entry)
    for end in embeddings_of(embeddings, grid):
        n_in = dense[f"{end.name}.weight"][1][1]
        if grid.group_size != -1 and n_in % grid.group_size:
            does = f"does not divide the {n_in} channels of {end.name}"
            instead = "take -1, or one that does" if grid.format == INT else "take format: int"
            return f"group_size {grid.group_size} {does}; {instead}"
    return None


def wanted(entry: Mapping[str, Any] | None, embeddings: Embeddings | None, dense: Layout) -> list[Embedding]:
    """What a recipe's `embeddings` quantises of a model; refused where that cannot be."""
    if not entry or embeddings is None:
        return []
    if reason := why_not(entry, embeddings, dense):
        if not entry.get("needed", True):
            return []
        raise InputError(f"embeddings: {reason}")
    return embeddings_of(embeddings, grid_of(entry))


def taken_by(end: Embedding, dense: Layout) -> Layout:
    """The tensors that a packed file has of one; dense: what the unquantised one has."""
    if end.is_input:
        return embedding_codes.layout({}, dense, end.owners, end.grid)
    dtype, shape = dense[f"{end.name}.weight"]
    return packed.layout_of(end.name, shape, dtype, end.grid)


def spared_bits(recipe: Mapping[str, Any], embeddings: Embeddings, dense: Layout) -> int:
    """What a recipe's codes of embedding and head take less than the 16 bit that they were in."""
    if not recipe["embeddings"] or why_not(recipe["embeddings"], embeddings, dense):
        return 0
    ends = embeddings_of(embeddings, grid_of(recipe["embeddings"]))
    before = {f"{end.name}.weight": dense[f"{end.name}.weight"] for end in ends}
    return packed.bits_of(before) - sum(packed.bits_of(taken_by(end, dense)) for end in ends)


def kept_in(end: Embedding, held: Layout) -> Layout:
    """The tensors that a file has of one."""
    keys = [f"{end.name}.weight", *embedding_codes.steps_of(end.owners)] if end.is_input else []
    parts = ("weight", "weight_packed", "weight_scale", "weight_shape")
    return {key: held[key] for key in (keys or [f"{end.name}.{part}" for part in parts]) if key in held}


def heads(found: Iterable[Embedding]) -> dict[str, Grid]:
    """The grids of those that are packed as linears are."""
    return {each.name: each.grid for each in found if not each.is_input}


def layout_with(whole: Layout, dense: Layout, found: Iterable[Embedding]) -> Layout:
    """A file's layout with an embedding as codes."""
    for each in found:
        if each.is_input:
            whole = embedding_codes.layout(whole, dense, each.owners, each.grid)
    return whole


def configured(config: dict[str, Any], found: Iterable[Embedding], naming: Names | None) -> dict[str, Any]:
    """A quantization_config of packed linears that names an embedding too."""
    for each in found:
        if each.is_input:
            config = embedding_codes.with_group(config, each.owners, each.grid, naming)
    return config


def unread_by_vllm(found: Iterable[Embedding]) -> str | None:
    inputs = [each.name for each in found if each.is_input]
    return f"{embedding_codes.NO_READER}, as {inputs[0]} is" if inputs else None
