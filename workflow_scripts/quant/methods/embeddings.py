"""The token embedding and the output head of a model on a grid of their own."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quant.calibration.embedding_moments import ROWS, common_moment, known_of, predicted
from quant.calibration.reader import LinearStatistics
from quant.checkpoints import embedding_codes, packed
from quant.checkpoints.embeddings import Embedding
from quant.files import tensorfile
from quant.recipe import grids
from quant.recipe.grids import Codes, Grid
from quant.recipe.linear import round_linear
from quant.recipe.recipe import Recipe


@dataclass(frozen=True)
class RoundedEmbedding(Embedding):
    """codes: as the file will have them; predicted_nats: what they cost the model (calibration/embedding_moments.py),
    None where no statistics say."""

    codes: Codes
    predicted_nats: float | None


def round_embedding(
    w: Tensor, moment: Tensor | None, recipe: Recipe, grid: Grid, dtype: torch.dtype, generator: torch.Generator
) -> Codes:
    """w [vocab, d] on its grid by the recipe's range, rounding and refinement; dtype: of the steps in the file."""
    own = replace(recipe, **grid._asdict(), salience="none", keep="none", noise_injection=0.0)
    known = LinearStatistics(moment=moment)
    found = [
        round_linear(rows, None, known, own, generator, partial(grids.stored_step, dtype=dtype, steps=grid.steps))
        for rows in w.split(ROWS)
    ]
    codes, step, zero = (torch.cat([getattr(each, part) for each in found]) for part in ("codes", "step", "zero"))
    return Codes(codes, step, zero, grid, w.shape[1])


def rounded(
    model: tensorfile.TensorFile,
    embeddings: Iterable[Embedding],
    recipe: Recipe,
    statistics: str | None,
    device: str,
    provenance: Mapping[str, Any],
) -> Iterator[RoundedEmbedding]:
    """Every weight whose rows are tokens, for a checkpoint of this provenance. statistics: the end loss's moments."""
    layout, generator = model.layout(), torch.Generator().manual_seed(recipe.seed)
    for each in embeddings:
        dtype, (_, n_in) = layout[f"{each.name}.weight"]
        w = model.get(f"{each.name}.weight", device, torch.float32)
        known = None if statistics is None else known_of(statistics, each.owners, provenance, device)
        codes = round_embedding(w, None if known is None else common_moment(known), recipe, each.grid, dtype, generator)
        nats = None if known is None else predicted(w - codes.dequantize(), known)
        codes = Codes(codes.codes.cpu(), codes.step.cpu(), codes.zero.cpu(), each.grid, n_in)
        yield RoundedEmbedding(each.owners, each.grid, each.is_input, codes, nats)


def write_rounded(
    out: Any, model: tensorfile.TensorFile, embeddings: Iterable[RoundedEmbedding], is_packed: bool
) -> list[dict[str, Any]]:
    """Puts them into a checkpoint; a row each. out: a writer of one file or of shards."""
    rows = []
    for each in embeddings:
        written = tensors_of(each, is_packed)
        tensorfile.put_finite(out, written, model.path.parent)
        rows.append(row_of(each, packed.bits_of({key: out.layout[key] for key in written}), is_packed))
    return rows


def tensors_of(each: RoundedEmbedding, is_packed: bool) -> dict[str, Tensor]:
    """What the file holds of one."""
    if not is_packed:
        return {f"{each.name}.weight": each.codes.dequantize()}
    if each.is_input:
        return embedding_codes.parts(each.owners, each.codes)
    return packed.pack(each.name, each.codes)


def row_of(each: RoundedEmbedding, bits: int, is_packed: bool) -> dict[str, Any]:
    """What the record says of one; bits: of its tensors in a packed file."""
    grid, n_out = each.grid, len(each.codes.codes)
    taken = bits if is_packed else grids.storage_bits(n_out, each.codes.n_in, grid)
    own = {"module": each.name, "bits": grid.bits, "group_size": grid.group_size}
    return own | {"storage_bits": taken, "predicted_nats": each.predicted_nats}
