"""The names that a model's tensors are published under: those that transformers writes, where they are not its own."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quant.files import naming
from quant.files.naming import Names
from quant.files.pieces import Piece
from quant.models.structure.experts import unrolling

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def written(model: "PreTrainedModel", name: str, value: Tensor) -> dict[str, Tensor]:
    """What transformers writes in place of one tensor; nothing where an operation wants more than that."""
    from transformers.core_model_loading import revert_weight_conversion

    try:
        return revert_weight_conversion(model, {name: value})
    except Exception:  # an operation raises whatever a wrong shape or a missing piece led to
        return {}


def samples(model: "PreTrainedModel") -> Iterator[tuple[str, str]]:
    """Names of an unrolled model's tensors and those that transformers writes, one or more of each template."""
    split: dict[str, dict[str, Piece]] = {}
    for name, piece in unrolling(model).split.items():
        split.setdefault(piece.whole, {})[name] = piece
    seen: set[str] = set()
    known = model.state_dict()
    for name in stored(model):
        form, _ = naming.template(name)
        if form in seen or name in unrolling(model).split:
            continue
        seen.add(form)
        shape = (2, 3, 4)[: known[name].ndim] if name in known else (2, 3, 4)
        value = torch.arange(float(torch.Size(shape).numel())).view(shape)  # no side like another
        found = list(written(model, name, value).items())
        if len(found) == 1 and torch.equal(found[0][1], value):
            yield name, found[0][0]
    for whole, pieces in split.items():
        form, _ = naming.template(whole)
        if form in seen:
            continue
        seen.add(form)
        halves = 1 + any(piece.start for piece in pieces.values())
        n = 1 + max(piece.at or 0 for piece in pieces.values())
        code = torch.arange(float(n * halves)).view(n, halves, 1)  # each row says where it came from
        by_code = {float(halves * (piece.at or 0) + bool(piece.start)): name for name, piece in pieces.items()}
        for other, value in written(model, whole, code).items():
            if value.numel() == 1 and value.item() in by_code:
                yield by_code[value.item()], other


def stored(model: "PreTrainedModel") -> list[str]:
    """The names that a file of an unrolled model has, were they the model's: larger parameters where it holds those."""
    whole = {name: piece.whole for name, piece in unrolling(model).written.pieces.items()}
    return list(dict.fromkeys(whole.get(name, name) for name in model.state_dict()))


def names(model: "PreTrainedModel") -> Names:
    return naming.of(dict(samples(model)), stored(model))
