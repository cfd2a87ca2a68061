"""Sensitivity: the original model with only some of its weights as a method quantised them.

A part is a name and, for each linear that it touches, the output rows taken from the method's checkpoint. Recipes of
scope linear act on each linear alone, so no part needs another quantisation; a scope that folds scales into other
weights has no such parts.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quant.analysis.preactivations import dead_and_risky
from quant.checkpoints import stored
from quant.comparison.part_names import OTHER, RISKY
from quant.data.tokens import Tokens
from quant.errors import InputError
from quant.evaluation.by_block import ByBlock, too_large
from quant.evaluation.divergence import Reference
from quant.evaluation.head import Head
from quant.evaluation.perplexity import load_model
from quant.evaluation.perplexity import measure as measure_head
from quant.files import tensorfile
from quant.files.artifacts import rebuild
from quant.models.structure.experts import unroll
from quant.models.structure.linears import skeleton
from quant.runtime.compute import Compute

logger = logging.getLogger("quant")


class Part(NamedTuple):
    """by: kind, layer or risk; rows: of each linear a mask [out] of the rows to replace, or None for all of them."""

    by: str
    name: str
    rows: dict[str, Tensor | None]


def by_kind(linears: dict[str, int]) -> list[Part]:
    """A part for each kind of linear, the last component of its name; linears: name → decoder layer."""
    kinds = dict.fromkeys(name.rsplit(".", 1)[-1] for name in linears)
    return [Part("kind", kind, {name: None for name in linears if name.rsplit(".", 1)[-1] == kind}) for kind in kinds]


def by_layer(linears: dict[str, int]) -> list[Part]:
    """A part for each decoder layer."""
    return [
        Part("layer", str(layer), {name: None for name in linears if linears[name] == layer})
        for layer in sorted(set(linears.values()))
    ]


def others(masks: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """As many rows of each linear outside its mask [out], drawn without replacement; all of them where fewer are."""
    drawn = {}
    for name, mask in masks.items():
        outside = torch.nonzero(~mask).flatten()
        chosen = outside[torch.randperm(len(outside), generator=generator)[: int(mask.sum())]]
        drawn[name] = torch.zeros_like(mask)
        drawn[name][chosen] = True
    return drawn


def by_risk(masks: dict[str, Tensor], draws: int, seed: int) -> list[Part]:
    """The risky rows of every linear that has some, and `draws` times equally many others of the same linears."""
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    if not masks:
        return []
    generator = torch.Generator().manual_seed(seed)
    return [
        Part("risk", RISKY, dict(masks)),
        *(Part("risk", f"{OTHER} {i + 1}", dict(others(masks, generator))) for i in range(draws)),
    ]


def risk_masks(
    channels: Path, linears: dict[str, int], thresholds: dict[str, float]
) -> tuple[dict[str, Tensor], dict[str, dict[str, int]]]:
    """Mask of the risky rows of each linear, and by kind of linear how many rows there are, dead and risky ones."""
    masks: dict[str, Tensor] = {}
    counts: dict[str, dict[str, int]] = {}
    with tensorfile.opened(channels) as file:
        for name in linears:
            mean, std = (file.get(f"{name}.{key}") for key in ("z_mean", "z_std"))
            is_dead, masks[name] = dead_and_risky(mean, std, thresholds)
            row = counts.setdefault(name.rsplit(".", 1)[-1], {"rows": 0, "dead": 0, "risky": 0})
            for key, n in (("rows", len(is_dead)), ("dead", int(is_dead.sum())), ("risky", int(masks[name].sum()))):
                row[key] += n
    return masks, counts


Weights = stored.Stored | stored.Unfolded


def mixed(name: str, w: Tensor, rows: Tensor | None, weights: Weights) -> Tensor:
    """A linear's original weight w [out, in] with a part's rows of the method's."""
    new = weights.weight(name, str(w.device)).to(w.dtype)
    if new.shape != w.shape:
        raise InputError(
            f"{weights.file.path}: {name} is {list(new.shape)}, in the original {list(w.shape)}; "
            f"{rebuild(weights.file.path)}"
        )
    return new if rows is None else torch.where(rows.to(w.device)[:, None], new, w)


@contextlib.contextmanager
def replaced(model: nn.Module, part: Part, weights: Weights) -> Iterator[None]:
    """Within it the model has a part of the method's weights."""
    before: dict[nn.Parameter, Tensor] = {}
    for name, rows in part.rows.items():
        parameter = model.get_parameter(f"{name}.weight")
        w = before[parameter] = parameter.data
        parameter.data = mixed(name, w, rows, weights)
    try:
        yield
    finally:
        for parameter, w in before.items():
            parameter.data = w


class Swapped(stored.Dense):
    """A checkpoint's weights with a part of a method's."""

    def __init__(self, original: stored.Stored, part: Part, weights: Weights) -> None:
        super().__init__(original)
        self._part, self._method = part, weights

    def get(self, name: str, device: str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        value, linear = super().get(name, device, dtype), name.removesuffix(".weight")
        if not name.endswith(".weight") or linear not in self._part.rows:
            return value
        return mixed(linear, value, self._part.rows[linear], self._method)


@contextlib.contextmanager
def swapped(checkpoint: Path, part: Part, weights: Weights) -> Iterator[Swapped]:
    with stored.opened(checkpoint) as original:
        yield Swapped(original, part, weights)


def kept_states(head: Head, tokens: Tokens, batch_tokens: int) -> Reference:
    """What KL is held against: the states of every prediction, in memory."""
    states: list[Tensor] = []
    measure_head(head, tokens, batch_tokens, keep=lambda _, found: states.append(found.clone()))
    return Reference(states.__getitem__, head.logits)


def measure(
    original: Path,
    quantized: Path,
    model_fingerprint: str,
    parts: Sequence[Part],
    tokens: Tokens,
    compute: Compute,
    folds: Path | None = None,
    compared: bool = False,
) -> list[dict[str, Any]]:
    """A row per part: by, part, rows, weights, and nll, the sum in nats of each sequence, of one that is compared also
    kl. original, quantized: checkpoint directories of the same model; folds: of a method that moves scales into other
    weights, so that its linears are taken without them."""
    by_block = too_large(original, compute)
    model = skeleton(original) if by_block else unroll(load_model(original, compute.device, compute.dtype))

    def head_of(part: Part | None, weights: Weights) -> Head:
        if not by_block:
            with torch.inference_mode():
                return Head(model, compute.device)
        given = (original, tokens.sequences, compute)
        return ByBlock(*given) if part is None else ByBlock(*given, partial(swapped, part=part, weights=weights))

    found = []
    with (
        stored.opened(quantized, model_fingerprint) as held,
        contextlib.nullcontext() if folds is None else tensorfile.opened(folds) as moved,
    ):
        weights = held if moved is None else stored.Unfolded(held, moved)
        reference = kept_states(head_of(None, weights), tokens, compute.batch_tokens) if compared else None
        for place, part in enumerate(parts, 1):
            logger.info("part %d of %d: %s", place, len(parts), part.name)
            with contextlib.nullcontext() if by_block else replaced(model, part, weights):
                rows, _ = measure_head(head_of(part, weights), tokens, compute.batch_tokens, reference)
            sizes = {name: model.get_parameter(f"{name}.weight").shape for name in part.rows}
            counts = {name: sizes[name][0] if mask is None else int(mask.sum()) for name, mask in part.rows.items()}
            found.append({"by": part.by, "part": part.name, "rows": sum(counts.values()),
                          "weights": sum(n * sizes[name][1] for name, n in counts.items()),
                          "nll": [row["nll"] for row in rows]}
                         | ({"kl": [row["kl"] for row in rows]} if compared else {}))  # fmt: skip
    return found
