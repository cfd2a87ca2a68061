"""The checkpoint format that vLLM and transformers load: compressed-tensors `pack-quantized`.

A linear of [out, in] in groups of g inputs becomes weight_packed int32 [out, words(in)], weight_scale [out, in/g] in
the model's own dtype, weight_shape int64 [2] and, where the grid has zero points, weight_zero_point int32
[words(out), in/g]. An int32 holds ⌊32/bits⌋ codes, the first in its lowest bits: 10 of 3 bits, which so take 3.2. Where
grids are several, each is a config group whose targets are its linears' full names: a class name would match by
substring in vLLM, and a pattern more than was meant. What is written is packed by the library; its configuration is
held against the library's classes in the tests, and what is read back is unpacked here, since importing the library
imports transformers.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quant.checkpoints import byte_codes
from quant.checkpoints.library_code import helpers
from quant.errors import InputError
from quant.files.artifacts import rebuild
from quant.files.naming import Names
from quant.files.tensorfile import Layout, TensorFile
from quant.files.weight_names import experts_of
from quant.recipe import grids
from quant.recipe.formats import NAMES
from quant.recipe.grids import Codes, Grid

if TYPE_CHECKING:
    import compressed_tensors  # noqa: F401  (so that its version counts as any import's)

FORMAT = "pack-quantized"
SEVERAL = "mixed-precision"  # what a checkpoint of several formats calls itself
BITS = (2, 3, 4, 8)
FAST = (4, 8)  # those that vLLM has products for
ANY = "Linear"  # the target of a checkpoint of one grid
HEAD = "lm_head"  # named even where it is tied, and so not in the file: it is a Linear of the model all the same


def words(n: int, bits: int) -> int:
    """int32 that n codes fill."""
    return -(-n // (32 // bits))


def layout_of(name: str, shape: tuple[int, ...], dtype: torch.dtype, grid: Grid) -> Layout:
    """Every tensor of a packed linear; dtype: of its scales."""
    if not grid.in_words:
        return byte_codes.layout_of(name, shape, dtype, grid)
    n_out, n_in = shape
    groups = grids.n_groups(n_in, grid.group_size)
    parts: Layout = {
        f"{name}.weight_packed": (torch.int32, (n_out, words(n_in, grid.bits))),
        f"{name}.weight_scale": (dtype, (n_out, groups)),
        f"{name}.weight_shape": (torch.int64, (2,)),
    }
    if not grid.symmetric:
        parts[f"{name}.weight_zero_point"] = (torch.int32, (words(n_out, grid.bits), groups))
    return parts


def layout(dense: Layout, grids: Mapping[str, Grid]) -> Layout:
    """A dense checkpoint's layout with its linears packed; grids: by linear."""
    names = {f"{name}.weight": name for name in grids}
    whole = {key: value for key, value in dense.items() if key not in names}
    for key, name in names.items():
        whole |= layout_of(name, dense[key][1], dense[key][0], grids[name])
    return byte_codes.in_model_dtype(whole, {grid.format for grid in grids.values()})


def bits_of(parts: Layout) -> int:
    """What the tensors take on disk."""
    return 8 * sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in parts.values())


def pack(name: str, linear: Codes) -> dict[str, Tensor]:
    """A linear's tensors in the file; its scales in the dtype of step, for the writer to cast."""
    if not linear.grid.in_words:
        return byte_codes.pack(name, linear)
    pack_to_int32, grid = helpers("pack_quantized").pack_to_int32, linear.grid
    middle = 2 ** (grid.bits - 1)  # the library's codes are signed
    offset = 0 if grid.symmetric else middle
    codes = grids.from_groups(linear.codes, linear.n_in) - offset
    parts = {
        f"{name}.weight_packed": pack_to_int32(codes.to(torch.int8), grid.bits),
        f"{name}.weight_scale": linear.step[:, :, 0],
        f"{name}.weight_shape": torch.tensor(codes.shape),
    }
    if not grid.symmetric:
        zero = (linear.zero[:, :, 0] - middle).to(torch.int8)
        parts[f"{name}.weight_zero_point"] = pack_to_int32(zero, grid.bits, packed_dim=0)
    return parts


def scales(linear: Codes) -> Tensor:
    """A linear's weight_scale, for the writer to cast."""
    return linear.step[:, :, 0] if linear.grid.in_words else byte_codes.scales(linear)


def unpack_words(packed: Tensor, bits: int, n: int) -> Tensor:
    """int32 [rows, words] → unsigned codes 0 to 2^bits-1, int32 [rows, n]."""
    shifts = bits * torch.arange(32 // bits, dtype=torch.int32, device=packed.device)
    return ((packed[:, :, None] >> shifts) & (2**bits - 1)).flatten(1)[:, :n]


def shape_of(file: TensorFile, name: str, grid: Grid) -> tuple[int, ...]:
    """[out, in] of a packed linear."""
    return tuple(file.get(f"{name}.weight_shape").tolist()) if grid.in_words else byte_codes.shape_of(file, name)


def unpack(file: TensorFile, name: str, grid: Grid, device: str = "cpu") -> Codes:
    """A packed linear, float32."""
    if not grid.in_words:
        return byte_codes.unpack(file, name, grid, device)
    n_out, n_in = file.get(f"{name}.weight_shape").tolist()
    codes = unpack_words(file.get(f"{name}.weight_packed", device), grid.bits, n_in).float()
    step = file.get(f"{name}.weight_scale", device, torch.float32)[:, :, None]
    if grid.symmetric:
        codes, zero = codes + grid.lowest, torch.zeros_like(step)
    else:
        stored = file.get(f"{name}.weight_zero_point", device).T
        zero = unpack_words(stored, grid.bits, n_out).T.float()[:, :, None]
    return Codes(grids.to_groups(codes, grid.group_size), step, zero, grid, n_in)


def quantization_config(
    grids: Mapping[str, Grid],
    dense: Layout,
    left: Iterable[str] = (),
    naming: Names | None = None,
    inputs: bool = False,
) -> dict[str, Any]:
    """config.json's entry for linears on these grids; every matrix that is none of them, and every linear of `left`, is
    named as left alone. Names are the model's and the file's. inputs: readers round inputs too."""
    both = (naming or Names()).both
    matrices = {key.removesuffix(".weight") for key, (_, shape) in dense.items() if len(shape) == 2}
    experts = {grid for name, grid in grids.items() if experts_of(name)}
    kinds = sorted(set(grids.values()), key=lambda grid: (grid not in experts, grid))  # theirs first: see with_group
    targets = {grid: [ANY] if len(kinds) == 1 else [name for name in grids if grids[name] == grid] for grid in kinds}
    formats = sorted({format_of(grid) for grid in kinds})
    return {
        "quant_method": "compressed-tensors",
        "format": formats[0] if len(formats) == 1 else SEVERAL,
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {"targets": sorted(both(targets[grid])), "weights": weights_of(grid)}
            | ({} if formats == [FORMAT] else {"format": format_of(grid)})
            | ({"input_activations": byte_codes.inputs_of(grid)} if inputs else {})
            for i, grid in enumerate(kinds)
        },
        "ignore": sorted(both(({HEAD, *left} | matrices) - set(grids))),
    }


def format_of(grid: Grid) -> str:
    """What compressed-tensors calls the way in which a linear on this grid is stored."""
    return FORMAT if grid.in_words else NAMES[grid.format]


def weights_of(grid: Grid) -> dict[str, Any]:
    """A grid as a config group has it."""
    if not grid.in_words:
        return byte_codes.weights_of(grid)
    size = None if grid.group_size == -1 else grid.group_size
    weights = {"num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric}
    return weights | {"strategy": "group" if size else "channel", "group_size": size}


def grids_of(config: dict[str, Any], where: str) -> dict[str, Grid] | None:
    """The grids that a config.json names, by target; None where its checkpoint is dense. Refuses formats other than
    ours."""
    stored = config.get("quantization_config")
    if stored is None:
        return None
    found: dict[str, Grid] = {}
    try:
        for group in stored["config_groups"].values():
            weights = group["weights"]
            if weights["type"] == "int" and group.get("format", FORMAT) == FORMAT:
                grid = Grid(weights["num_bits"], weights["group_size"] or -1, weights["symmetric"])
            else:
                grid = byte_codes.grid_of(weights)
            found |= dict.fromkeys(group["targets"], grid)
        written = stored["format"]
        formats = {format_of(grid) for grid in found.values()}
        several = len(stored["config_groups"]) > 1
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{where}: its quantization_config is none of {FORMAT}; {rebuild(where)}") from None
    if not found or several == (ANY in found):
        raise InputError(
            f"{where}: its quantization_config is none of {FORMAT}, with {ANY} as the one target or a group of names "
            f"for each grid; {rebuild(where)}"
        )
    for grid in found.values():
        if written != (min(formats) if len(formats) == 1 else SEVERAL) or grid.bits not in BITS:
            raise InputError(f"{where}: holds {written} of {grid.bits} bits, not {FORMAT}; {rebuild(where)}")
    return found


def check(
    file: TensorFile, grids: Mapping[str, Grid] | None, where: str, beside: Collection[str] = ()
) -> dict[str, Grid]:
    """The grid of each packed linear of a file, which holds the tensors that it asks for; refuses any other by its
    name. grids: by target; beside: an embedding that is of bytes too."""
    held = file.layout()
    named = {key.removesuffix(".weight_packed") for key in held if key.endswith(".weight_packed")}
    named |= byte_codes.of_bytes(held) - set(beside)
    if bool(named) != (grids is not None):
        holds = "packed weights" if named else "no packed weights"
        raise InputError(f"{file.path}: holds {holds}, but {where} says otherwise; {rebuild(file.path)}")
    if grids is None:
        return {}
    # which names them as the model and as the file does
    grids = {file.naming.inside(f"{name}.weight").removesuffix(".weight"): grid for name, grid in grids.items()}
    parts_of = by_linear(held, named)
    found: dict[str, Grid] = {}
    for name in sorted(named if ANY in grids else named | set(grids)):
        grid = grids.get(name, grids.get(ANY))
        if grid is None or name not in named:
            does, says = ("holds", "no") if grid is None else ("lacks", "a")
            raise InputError(
                f"{file.path}: {does} {name} packed, and {where} has {says} grid for it; {rebuild(file.path)}"
            )
        found[name] = grid
        check_linear(file, name, grid, parts_of[name], where)
    return found


def by_linear(held: Layout, named: Iterable[str]) -> dict[str, Layout]:
    """The tensors of each linear's weight."""
    found: dict[str, Layout] = {name: {} for name in named}
    for key, value in held.items():
        name, _, part = key.rpartition(".")
        if name in found and part.startswith("weight"):
            found[name][key] = value
    return found


def check_linear(file: TensorFile, name: str, grid: Grid, held: Layout, where: str) -> None:
    """Refuses a packed linear whose tensors are not those that its grid asks for."""
    shape = shape_of(file, name, grid)
    size = "one group a row" if grid.group_size == -1 else f"group_size {grid.group_size}"
    if grid.group_size != -1 and shape[1] % grid.group_size:
        raise InputError(
            f"{file.path}: {name} has {shape[1]} inputs, which {size} in {where} does not divide; {rebuild(file.path)}"
        )
    dtype = held[f"{name}.weight_scale"][0] if f"{name}.weight_scale" in held else torch.float32
    present = {key: parts for key, (_, parts) in held.items()}
    asked = {key: parts for key, (_, parts) in layout_of(name, shape, dtype, grid).items()}
    for key in asked | present:
        if (found := present.get(key)) != (wanted := asked.get(key)):
            what = "is missing" if found is None else f"is {list(found)}"
            kind = f"{'symmetric ' if grid.symmetric else ''}{grid.bits} bits and {size}"
            raise InputError(
                f"{file.path}: {key} {what} where {kind} in {where} ask for {list(wanted) if wanted else 'none'}; "
                f"{rebuild(file.path)}"
            )
