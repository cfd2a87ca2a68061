"""What of a study cannot run on a model: every such mistake at once, before anything long begins."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from quant.checkpoints import packed
from quant.checkpoints.embeddings import spared_bits, why_not
from quant.comparison.pick import LIMITS
from quant.errors import InputError
from quant.files import tensorfile
from quant.files.artifacts import read_json
from quant.files.units import megabytes
from quant.files.weight_names import experts_of
from quant.methods.dense import recipes_of, shapes_of
from quant.methods.exporting import why_no_export, why_unmeasured
from quant.methods.library import check_model
from quant.methods.packing import activations_refused, why_dense
from quant.methods.shared import shared_groups
from quant.models.structure.architectures import ARCHITECTURES
from quant.models.structure.depth import layer_at
from quant.models.structure.positions import positions_of
from quant.recipe import grids
from quant.recipe.recipe import Recipe
from quant.records.model import Embeddings, Linears
from quant.workflow.estimates.shape import EXPERTS, Shape, moment_numbers


def layer_mistakes(wanted: dict[str, list[int | str]], layers: int) -> Iterator[str]:
    """wanted: layers by key."""
    for key, chosen in wanted.items():
        found = [layer_at(layer, layers) for layer in chosen]
        beyond = [str(layer) for layer in found if layer >= layers]
        if beyond:
            yield f"{key}: {', '.join(beyond)}: the model has layers 0 to {layers - 1}; name one of them, or auto"
        if "auto" in chosen and found.count(layer_at("auto", layers)) > 1:
            yield f"{key}: auto is layer {layer_at('auto', layers)} here, which is named too; leave out one of them"


def length_mistakes(wanted: dict[str, int], config: dict[str, Any]) -> Iterator[str]:
    """wanted: seq_len by key; config: of the model."""
    positions = positions_of(config)
    for key, length in wanted.items():
        if positions is not None and length > positions:
            yield f"{key}: {length}: the model was made for {positions} tokens at most; write a smaller one"


def moment_mistakes(wanted: dict[str, Any], config: dict[str, Any]) -> Iterator[str]:
    """wanted: the configuration's `moments:`. Where its budget ends, experts have their layer's; others have none."""
    shape, budget = Shape.of(config), wanted["budget_gb"]
    if shape is None or budget is None:
        return
    dense = shape._replace(linears=tuple(each for each in shape.linears if each.n < EXPERTS))
    need = (2 if wanted["store"] == "bfloat16" else 4) * moment_numbers(dense) / 1e9
    if need > budget:
        half = "" if wanted["store"] == "bfloat16" else " or moments: {store: bfloat16}, which takes half"
        yield f"moments.budget_gb: {budget:g}: its second moments take {need:.3g} GB; write as much{half}"


def why_no_jacobian(config: dict[str, Any], block: list[str]) -> str | None:
    """block: names of a block's linears within it."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        return (
            f"model_type {kind!r} has no row in workflow_scripts/quant/models/structure/architectures.py, which says "
            "what its MLP is; leave it out for this model, or add one"
        )
    mlp = ARCHITECTURES[kind].mlp
    missing = [name for name in (mlp.gate, mlp.up, mlp.down) if name is not None and name not in block]
    return f"the model has no linear {missing[0]} in each block; leave it out for this model" if missing else None


def why_not_shared(config: dict[str, Any], blocks: dict[str, list[str]]) -> str | None:
    """blocks: full names of linears by their block's name."""
    try:
        for prefix, names in blocks.items():
            shared_groups(names, prefix, "shared", config)
    except InputError as error:
        return str(error)
    return None


def limit_mistakes(
    limits: dict[str, float], recipes: dict[str, dict[str, Any]], record: Linears, layout: tensorfile.Layout
) -> Iterator[str]:
    """limits of a packed checkpoint by key; layout: of the unquantised one. A study without packed methods has none."""
    linears, embeddings = record["linears"], record["embeddings"]
    if not recipes:
        return
    shapes = shapes_of(linears, layout)
    weights = sum(n_out * n_in for n_out, n_in in shapes.values())
    sizes: dict[str, dict[str, float]] = {key: {} for key in limits}
    single = {name: entry for name, entry in recipes.items() if entry["budget"] is None}  # a mix is of some of them
    for name, entry in single.items():
        recipe = Recipe.of(entry)
        if why_dense(recipe, shapes, record["unpacked"]) is not None:
            continue
        whole = packed.bits_of(packed.layout(layout, {each: recipe.at(each).grid for each in linears}))
        rest = packed.bits_of(
            {key: value for key, value in layout.items() if key.removesuffix(".weight") not in shapes}
        )
        size = (whole - spared_bits(entry, embeddings, layout)) / 8e6
        found = {"max_bits_per_weight": (whole - rest) / weights, "max_size_mb": size}
        for key in limits:
            sizes[key][name] = found[key]
    for key, limit in limits.items():
        if sizes[key] and min(sizes[key].values()) > limit:
            name = min(sizes[key], key=lambda name: sizes[key][name])
            least = sizes[key][name]
            amount = f"{megabytes(least)} MB" if key == "max_size_mb" else f"{least:.2f} bits per weight"
            yield (
                f"choose.{key}: no packed method of the study has at most {LIMITS[key][1].format(limit)} on this "
                f"model; the smallest, {name}, has {amount}: allow more, or add a method"
            )


def least_bits(
    recipe: dict[str, Any],
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    unpacked: Mapping[str, str],
    end: int,
) -> tuple[int, int]:
    """What a linear takes at least, by the smallest of a budget's candidates, and with the file's header, of a file of
    that many bytes before it was packed."""
    found = []
    for one in recipes_of(recipe):
        own: tensorfile.Layout = {f"{name}.weight": (dtype, shape)}
        if one is not None and why_dense(one, {name: shape}, unpacked) is None:
            own = packed.layout_of(name, shape, dtype, one.grid)
            bits = packed.bits_of(own)
        else:
            bits = packed.bits_of(own) if one is None else grids.storage_bits(shape[0], shape[1], one.grid)
        found.append((bits, bits + 8 * sum(tensorfile.entry_bytes(key, *own[key], end) for key in own)))
    least, in_file = map(min, zip(*found, strict=True))
    return least, in_file


def budget_mistakes(budgets: dict[str, dict[str, Any]], record: Linears, layout: tensorfile.Layout) -> Iterator[str]:
    """Budgets by method that even the smallest candidates exceed; layout: of the unquantised checkpoint."""
    linears, embeddings, unpacked = record["linears"], record["embeddings"], record["unpacked"]
    shapes = {name: layout[f"{name}.weight"] for name in linears}
    weights = sum(torch.Size(shape).numel() for _, shape in shapes.values())
    others = {key: value for key, value in layout.items() if key.removesuffix(".weight") not in shapes}
    rest, end = packed.bits_of(others) + 8 * tensorfile.header_bytes(others, {}), packed.bits_of(layout) // 8
    for method, recipe in budgets.items():
        bits = [least_bits(recipe, name, *known, unpacked, end) for name, known in shapes.items()]
        (least, in_file), limits = map(sum, zip(*bits, strict=True)), recipe["budget"]
        size = (in_file + rest - spared_bits(recipe, embeddings, layout)) / 8e6
        said = {
            "bits_per_weight": (least / weights, f"{least / weights:.3f} bits per weight"),
            "size_mb": (size, f"{megabytes(size)} MB"),
        }
        for key, (found, amount) in said.items():
            if limits[key] and found > limits[key]:
                yield (
                    f"methods.{method}.budget: {key}: {limits[key]:g}: the smallest choice of its candidates takes "
                    f"{amount} on this model; allow more, or add smaller candidates"
                )


def embedding_mistakes(
    entries: dict[str, dict[str, Any]], layout: tensorfile.Layout, embeddings: Embeddings
) -> Iterator[str]:
    """`embeddings` by method that cannot be."""
    for method, entry in entries.items():
        if entry.get("needed", True) and (reason := why_not(entry, embeddings, layout)):
            yield f"methods.{method}.embeddings: {reason}"


def activation_mistakes(
    entries: dict[str, dict[str, Any]], record: Linears, layout: tensorfile.Layout
) -> Iterator[str]:
    """Recipes by method whose `activations` need a packed checkpoint, where it would be dense."""
    shapes = shapes_of(record["linears"], layout)
    for method, entry in entries.items():
        if reason := why_dense(Recipe.of(entry), shapes, record["unpacked"]):
            yield f"methods.{method}: {activations_refused(entry['activations'], reason)}"


def moment_of_embedding_mistakes(
    methods: list[str], config: dict[str, Any], layout: tensorfile.Layout, embeddings: Embeddings
) -> Iterator[str]:
    """Methods that round an embedding by what its errors cost, which is known where the first block reads its rows."""
    shape, name = Shape.of(config), embeddings["embedding"]
    if not methods or embeddings["unread"] or shape is None:
        return
    width = layout[f"{name}.weight"][1][1]
    if width != shape.hidden:
        yield (
            f"methods {', '.join(methods)}: embeddings: the rows of {name} have {width} channels and the first block "
            f"reads {shape.hidden}, so that what their errors cost is not known; leave embeddings out for this model"
        )


def type_mistakes(types: dict[str, list[str]], linears: Iterable[str]) -> Iterator[str]:
    """Patterns of `tensor_types` by method that are in no linear's name."""
    linears = list(linears)
    for method, patterns in types.items():
        for pattern in patterns:
            if not any(re.search(pattern, name) for name in linears):
                yield (
                    f"methods.{method}.tensor_types: {pattern} is in no linear's name on this model; they are "
                    f"{linears[0]} and others"
                )


def gguf_mistakes(
    entries: dict[str, dict[str, Any]], checkpoint: Path, record: Linears, layout: tensorfile.Layout
) -> Iterator[str]:
    """Methods of study.gguf of which there is no such file; layout: of the unquantised checkpoint."""
    for method, entry in entries.items():
        refused = why_no_export("gguf", entry, checkpoint, record, layout)
        if reason := refused.reason if refused else why_unmeasured(checkpoint, layout):
            yield f"study.gguf: {method}: {reason}; leave it out of study.gguf, or FILE=gguf of make"


def mistakes(checkpoint: Path, record: Linears, wanted: dict[str, Any]) -> list[str]:
    """A line for each demand (quant.workflow.demands) that the model does not meet; record: convert's."""
    config, linears = read_json(checkpoint / "config.json"), record["linears"]
    by_block = {i: list(names) for i, names in groupby(linears, key=linears.__getitem__)}
    blocks = {names[0].partition(f".{i}.")[0] + f".{i}": names for i, names in by_block.items()}
    inside = [{name.removeprefix(f"{prefix}.") for name in names} for prefix, names in blocks.items()]
    found = [
        *layer_mistakes(wanted["layers"], 1 + max(linears.values())),
        *length_mistakes(wanted["seq_len"], config),
        *moment_mistakes(wanted["moments"], config),
    ]
    if wanted["jacobian"] and (reason := why_no_jacobian(config, sorted(set.intersection(*inside)))):
        found.append(f"methods {', '.join(wanted['jacobian'])}: jacobian: {reason}")
    if wanted["shared"] and (reason := why_not_shared(config, blocks)):
        found.append(f"methods {', '.join(wanted['shared'])}: {reason}")
    expert = next((name for name in linears if experts_of(name)), None)
    if expert is not None and wanted["sequential"]:
        found.append(
            f"methods {', '.join(wanted['sequential'])}: inputs: sequential: {expert} reads some tokens, not others, "
            "so that its inputs in two models do not compare; use inputs: parallel for this model"
        )
    if expert is not None and wanted["noisy"]:
        found.append(
            f"methods {', '.join(wanted['noisy'])}: noise_std is not known for mixtures of experts, as {expert} is of "
            "one; leave it out for this model"
        )
    for name, recipe in wanted["library"].items():
        try:
            check_model(checkpoint, linears, recipe)
        except InputError as error:
            found.append(f"methods.{name}: {error}")
    with tensorfile.opened(checkpoint / "model.safetensors") as file:
        known = record, file.layout()
        found += limit_mistakes(wanted["limits"], wanted["recipes"], *known)
        found += budget_mistakes(wanted["budgets"], *known)
        found += activation_mistakes(wanted["activations"], *known)
        found += type_mistakes(wanted["types"], linears)
        found += embedding_mistakes(wanted["embeddings"], known[1], record["embeddings"])
        found += moment_of_embedding_mistakes(wanted["embedding_moments"], config, known[1], record["embeddings"])
        found += gguf_mistakes(wanted["gguf"], checkpoint, *known)
    return found
