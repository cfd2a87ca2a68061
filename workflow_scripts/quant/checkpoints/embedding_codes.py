"""A token embedding's codes in a checkpoint: compressed-tensors' `int-quantized`, a byte each whatever their width.

An Embedding of [vocab, d] becomes weight int8 [vocab, d] and weight_scale [vocab, d/g] in the model's own dtype. Packed
ones, as linears have them, transformers does not load: it initialises every Embedding's `weight`, which packing takes
away (tried with 5.17; huggingface/transformers#47959). A head that shares the embedding's weight shares its codes too
and has the steps once more, under its own name, since transformers ties weights alone. vLLM reads packed embeddings
(vllm-project/vllm#44340) and none of these.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from quant.checkpoints import packed
from quant.errors import InputError
from quant.files.artifacts import rebuild
from quant.files.naming import Names
from quant.files.tensorfile import Layout, TensorFile
from quant.recipe import grids
from quant.recipe.formats import INT
from quant.recipe.grids import Codes, Grid

FORMAT = "int-quantized"
GROUP = "embedding"  # config.json's name of the group, first of all, since a head is of the class of another
NO_READER = "reads no embedding of a byte a code"  # of vLLM


def steps_of(owners: Iterable[str]) -> list[str]:
    """The tensors of steps."""
    return [f"{name}.weight_scale" for name in owners]


def layout(whole: Layout, dense: Layout, owners: list[str], grid: Grid) -> Layout:
    """A file's layout with the weight of the first of the owners, which share it, as codes."""
    dtype, (n_out, n_in) = whole.get(f"{owners[0]}.weight", dense[f"{owners[0]}.weight"])
    steps = (dtype, (n_out, grids.n_groups(n_in, grid.group_size)))
    return whole | {f"{owners[0]}.weight": (torch.int8, (n_out, n_in))} | dict.fromkeys(steps_of(owners), steps)


def parts(owners: list[str], codes: Codes) -> dict[str, Tensor]:
    """The tensors in the file; steps in their own dtype, for the writer to cast."""
    whole = grids.from_groups(codes.codes, codes.n_in).to(torch.int8)
    return {f"{owners[0]}.weight": whole} | dict.fromkeys(steps_of(owners), codes.step[:, :, 0])


def with_group(config: dict[str, Any], owners: list[str], grid: Grid, naming: Names | None = None) -> dict[str, Any]:
    """A quantization_config that names them too."""
    both = (naming or Names()).both(owners)
    group = {"targets": sorted(both), "format": FORMAT, "weights": packed.weights_of(grid)}
    # the last: transformers takes the first group of names for that of experts
    groups = config["config_groups"] | {GROUP if grid.format == INT else f"{GROUP}_{grid.format}": group}
    return config | {"config_groups": groups, "ignore": sorted(set(config["ignore"]) - both)}


def without_group(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The config of packed linears, and the group of the embedding where there is one."""
    stored = config.get("quantization_config")
    groups = stored.get("config_groups") if isinstance(stored, dict) else None
    if not isinstance(stored, dict) or not isinstance(groups, dict):
        return config, None
    own = next((key for key in groups if key.partition("_")[0] == GROUP), None)
    if own is None:
        return config, None
    rest = {key: group for key, group in groups.items() if key != own}
    found = groups[own] | {"of": own.partition("_")[2] or INT} if isinstance(groups[own], dict) else {}
    return config | {"quantization_config": stored | {"config_groups": rest}}, found


def check(
    file: TensorFile, group: dict[str, Any] | None, linears: Mapping[str, Grid] | None, where: str
) -> dict[str, Grid]:
    """The grid of the embedding that a file holds as codes, by its name; {} where there is none. Refuses a file that
    lacks what its config.json names. linears: the grids of packed linears, by target."""
    held = file.layout()
    found = {key for key, (dtype, shape) in held.items() if dtype == torch.int8 and len(shape) == 2}
    if group is None:
        if found and all(grid.in_words for grid in (linears or {}).values()):
            raise InputError(
                f"{file.path}: {min(found)} holds codes, and {where} has no grid for it; {rebuild(file.path)}"
            )
        return {}
    try:
        weights, targets = group["weights"], [file.naming.inside(f"{name}.weight") for name in group["targets"]]
        if group["of"] == INT:
            grid = Grid(weights["num_bits"], weights["group_size"] or -1, weights["symmetric"])
        else:
            grid = next(grid for grid in grids.of_formats([group["of"]]) if packed.weights_of(grid) == weights)
        written = group["format"]
    except (KeyError, TypeError, StopIteration):
        raise InputError(f"{where}: its group {GROUP} is none of {FORMAT}; {rebuild(where)}") from None
    if written != FORMAT or not grid.symmetric or len(found & set(targets)) != 1:
        raise InputError(f"{file.path}: holds no codes of the embedding that {where} names; {rebuild(file.path)}")
    key = min(found & set(targets))
    name, (n_out, n_in) = key.removesuffix(".weight"), held[key][1]
    size = n_in if grid.group_size == -1 else grid.group_size
    steps = held.get(f"{name}.weight_scale", (None, ()))[1]
    if n_in % size or steps != (n_out, n_in // size):
        raise InputError(
            f"{file.path}: {name}.weight_scale is {list(steps)} where {where} asks for {[n_out, -(-n_in // size)]}; "
            f"{rebuild(file.path)}"
        )
    return {name: grid}


def unpack(file: TensorFile, name: str, grid: Grid, device: str = "cpu") -> Codes:
    """An embedding's codes, float32."""
    codes = file.get(f"{name}.weight", device, torch.float32)
    step = file.get(f"{name}.weight_scale", device, torch.float32)[:, :, None]
    return Codes(grids.to_groups(codes, grid.group_size), step, torch.zeros_like(step), grid, codes.shape[1])
