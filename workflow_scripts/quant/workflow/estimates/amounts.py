"""Amounts that estimates are made of: what a job asks with, bytes and work of a shape's parts. Pure, and without torch.

Bytes and multiply-adds (counted twice) throughout; tokens are those that the configuration asks for, at most.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from quant.recipe.formats import FORMATS, INT, SIMULATED, bits_per_weight
from quant.workflow.estimates.shape import EXPERTS, WIDTHS, Shape, moment_numbers, triangle

MB = 10**6
LIGHT = 170 * MB  # a process without torch
CUDA = 1300 * MB  # of the host, for a process that has used a GPU
AHEAD = 1.3  # times what is read ahead or waits to be written: page-locked memory comes in powers of two
MAPPED = 8000 * MB  # of mapped files at most: where memory is short, their pages are given back
LOADED = 7e8  # bytes a second


class Estimate(NamedTuple):
    """ram, gpu: peak bytes of the host (mapped pages among them) and of the card; disk: of the outputs; model, float32:
    FLOP by the type of the products; moved: bytes that other kernels read and write; calls: operations that Python
    starts; carried: bytes between host and card beside the files'; read, written: bytes of files, in so many blocks
    one after the other; before: bytes read before the first of them; start: seconds before the work."""

    ram: float = LIGHT
    gpu: float = 0.0
    disk: float = 0.0
    model: float = 0.0
    float32: float = 0.0
    moved: float = 0.0
    calls: float = 0.0
    carried: float = 0.0
    read: float = 0.0
    written: float = 0.0
    blocks: float = 1.0
    before: float = 0.0
    start: float = 2.0


class Ask(NamedTuple):
    """A job: its model's shape and the study's options; on_gpu: whether it computes on one; room: bytes of that device,
    beyond which a model runs block by block; memory: of the host, of which mapped files get a quarter at most."""

    shape: Shape
    config: Mapping[str, Any]
    wildcards: Mapping[str, str]
    on_gpu: bool
    room: float = 80e9
    memory: float = float("inf")

    @property
    def width(self) -> int:
        """Bytes of a number in forward passes."""
        wanted = self.config["compute"]["dtype"]
        return WIDTHS.get(wanted, self.shape.width if self.on_gpu else 4)

    @property
    def batch(self) -> int:
        wanted = self.config["compute"]["batch_tokens"]
        return (16384 if self.on_gpu else 1024) if wanted == "auto" else int(wanted)

    @property
    def recipe(self) -> Mapping[str, Any]:
        return self.config["methods"][self.wildcards["method"]]

    @property
    def calibration(self) -> tuple[int, int]:
        """Tokens, and those of a sequence."""
        said = self.config["calibration"]
        name = self.wildcards.get("calibration")
        n = int(name[1:].partition("-")[0]) if name else said["n_calib"]
        return n * said["seq_len"], said["seq_len"]

    @property
    def data(self) -> tuple[int, int]:
        said = self.config["datasets"][self.wildcards["dataset"]]
        return said["n_samples"] * said["seq_len"], said["seq_len"]

    def host(self, imported: float, *, mapped: float = 0, own: float = 0, locked: float = 0) -> float:
        """locked: bytes of page-locked memory, which a GPU's job reads into and writes from."""
        card = CUDA + AHEAD * locked if self.on_gpu else 0.0
        return imported + card + min(mapped, MAPPED, self.memory / 4) + own

    def passing(self, tokens: int) -> float:
        """Bytes of a batch on its way through a block, at its widest."""
        return min(self.batch, tokens) * (3 * self.shape.middle + 8 * self.shape.hidden) * self.width

    def starting(self, with_model: bool) -> float:
        return (3.5 if with_model else 3.3) if self.on_gpu else (4.5 if with_model else 2.5)

    def loading(self, size: float) -> float:
        """Seconds before a whole model of so many bytes runs: held against its checksums, then loaded."""
        if self.on_gpu:
            return self.starting(True) + 2
        return self.starting(True) + 3 + size / LOADED


def forward(shape: Shape, tokens: int, width: int) -> float:
    """Blocks on sequences of `width` tokens: linears, and causal attention."""
    return shape.depth * tokens * (2 * shape.active + 2 * shape.hidden * width)


def head(shape: Shape, tokens: int) -> float:
    return 2.0 * tokens * shape.embedding


def outer(shape: Shape, tokens: int) -> float:
    """XᵀX of every input, one triangle."""
    return shape.depth * sum(e.n * e.share * tokens * e.n_in * (e.n_in + 1) for e in shape.linears if e.reads)


def n_linears(shape: Shape) -> int:
    """Of all blocks."""
    return shape.depth * sum(each.n for each in shape.linears)


def n_batches(ask: Ask, tokens: int, width: int) -> int:
    """Of whole sequences of `width` tokens."""
    return -(-tokens // max(width, ask.batch // width * width))


def ends(shape: Shape) -> float:
    """Bytes of embedding and head."""
    return float((shape.weights - shape.quantised) * shape.width)


def products(shape: Shape) -> float:
    """One triangle of D·H of every linear."""
    return shape.depth * sum(each.n * each.n_out * each.n_in * (each.n_in + 1.0) for each in shape.linears)


def bits_of(recipe: Mapping[str, Any], shape: Shape) -> float:
    """Of a packed weight, with its share of steps and zeros."""
    group = recipe["group_size"] if recipe["group_size"] > 0 else shape.hidden
    own = FORMATS[recipe.get("format", INT)]
    more = own.in_file - own.bits if own.in_file and own.bits else 0
    return bits_per_weight({**recipe, "group_size": group}) + more


def is_packed(recipe: Mapping[str, Any]) -> bool:
    """Whether codes, steps and zeros are all that it needs (methods.packing says it of a model)."""
    if "algorithm" in recipe:
        return True
    alone = recipe["salience"] == "none" or recipe["scope"] == "shared"
    known = recipe["format"] not in SIMULATED
    return alone and known and recipe["keep"] == "none" and not recipe["noise_injection"]


def stored(shape: Shape, recipe: Mapping[str, Any] | None = None) -> float:
    """Bytes of a checkpoint: the original's, or a method's."""
    if recipe is None or not is_packed(recipe):
        return shape.weights * shape.width
    budget = recipe.get("budget") or {}
    if budget.get("size_mb"):
        return budget["size_mb"] * MB
    if "algorithm" in recipe:
        bits = recipe["bits"] + 20 / max(recipe["group_size"], 1)
    else:
        bits = budget.get("bits_per_weight") or bits_of(recipe, shape)
    return (shape.weights - shape.quantised) * shape.width + shape.quantised * bits / 8


def moments(shape: Shape, config: Mapping[str, Any]) -> float:
    """Bytes of the second moments on disk, as long as they are there."""
    said = config.get("moments", {"store": "float32", "budget_gb": None})
    width = 2.0 if said["store"] == "bfloat16" else 4.0
    dense = shape._replace(linears=tuple(each for each in shape.linears if each.n < EXPERTS))
    own = width * moment_numbers(dense)
    experts = width * moment_numbers(shape) - own
    pooled = (
        width * shape.depth * sum(triangle(each.n_in) for each in shape.linears if each.n >= EXPERTS and each.reads)
    )
    most = float("inf") if said["budget_gb"] is None else said["budget_gb"] * 1e9 + pooled
    return own + min(experts, most)
