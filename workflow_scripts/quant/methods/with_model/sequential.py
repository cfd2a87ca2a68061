"""Linears quantised in the order in which they run, each for the inputs that the quantised model gives it.

Scales are found beforehand, on the original's statistics, since those of o and down are folded into rows of v and up,
which are rounded before them. Ranges, rounding and refinement go by the stream's moments, towards the corrected weight.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from quant.calibration.streams import Pair, Streams
from quant.data.tokens import Tokens
from quant.methods.block import Block
from quant.methods.embeddings import RoundedEmbedding
from quant.methods.shared import Shared
from quant.methods.with_model.reconstruct import Aim, Descent, Reconstruction, Reconstructor
from quant.recipe.correction import corrected

Moments = tuple[Tensor, Tensor | None]


def in_original_units(taken: Moments, scale: Tensor | None, others: Collection[Moments]) -> tuple[Tensor, list[Tensor]]:
    """H̃ and, in a list from which it can be taken, C or W·C of the inputs X̃·diag(scale), where X̃ was divided by a
    folded scale [in]; C is the caller's own. In their place, unless others are waiting for the same."""
    waiting = {id(each) for other in others for each in other}
    moment, cross = taken
    own = [each.clone() if id(each) in waiting else each for each in (cross,) if each is not None]
    if scale is None:
        return moment, own
    moment = moment.clone() if id(moment) in waiting else moment
    return moment.mul_(scale[:, None]).mul_(scale), [each.mul_(scale) for each in own]


def moments_of(pair: Pair, reading: str, names: list[str], corrects: bool, block: Block) -> dict[str, Moments]:
    """H̃ and C, or W·C, of linears that read one input: one for all, or each its own where tokens count by the end loss;
    [in, in], W·C [out, in], or as many as there are parts."""
    counts = [block.statistics.token_weights(name, block.weights[name].device.type) for name in names]
    weighted = [each for each in counts if each is not None]
    if not weighted:
        moment, crosses = pair.moments(reading, corrects)
        return {name: (moment, crosses.get(name.removeprefix(f"{pair.name}."))) for name in names}
    moment, crosses = pair.moments(reading, corrects, torch.cat(weighted))
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    start = 0
    for name, each in zip(names, weighted, strict=True):
        own = start if len(each) == 1 else slice(start, start + len(each))
        cross = crosses.get(name.removeprefix(f"{pair.name}."))
        found[name] = moment[own], None if cross is None else cross[own]
        start += len(each)
    return found


class Sequential:
    """`quantize_checkpoint`'s way with a block; its blocks must come in their order, from the first."""

    def __init__(
        self,
        checkpoint: Path,
        calibration: Tokens,
        device: str,
        dtype: torch.dtype,
        batch_tokens: int,
        reconstruction: Reconstruction | None = None,
        left_out: frozenset[int] = frozenset(),
        ends: Sequence[RoundedEmbedding] = (),
    ) -> None:
        """left_out: sequences that reconstruction does not look at; ends: embedding and head as quantised, filled
        before the first block comes. Reconstruction's steps have the tokens that it asks for, in as many portions as
        `batch_tokens` makes of them."""
        self._reconstruction, self._left_out, self._step_tokens = reconstruction, left_out, 0
        self.errors: dict[str, tuple[float, float]] = {}  # of a block's output, before and after reconstruction
        self._descent: Descent | None = None  # an earlier block's
        if reconstruction is not None:
            self._step_tokens = reconstruction.batch * max(map(len, calibration.sequences))
        streams = Streams(checkpoint, calibration.sequences, device, dtype, batch_tokens, progress="streams")
        streams.fewer()
        self._pairs: Iterator[Pair] = self._begun(streams, ends, self._step_tokens or None)

    @staticmethod
    def _begun(streams: Streams, ends: Sequence[RoundedEmbedding], portion_tokens: int | None) -> Iterator[Pair]:
        changed = {f"{each.name}.weight": each.codes.dequantize() for each in ends if each.is_input}
        yield from streams.pairs(changed, portion_tokens)

    def __call__(self, block: Block, groups: list[Shared]) -> None:
        share, first = block.recipe.correction, groups[0].linears[0]
        corrects = share > 0
        while not first.startswith(f"{(pair := next(self._pairs)).name}."):
            pair.advance(corrects)  # a block that is left as it is
        for group in groups:
            block.find(group)
            for name in group.linears:  # the stream's takes its place
                block.known[name] = replace(block.known[name], moment=None)
                if (same := pair.original(name)).dtype == block.weights[name].dtype:
                    block.weights[name] = same  # which is held in any case
        block.statistics.release()
        pair.put(block.others)
        aims: dict[str, Aim] = {}
        for reading in pair.groups:
            names = [name for name in (f"{pair.name}.{linear}" for linear in reading) if name in block.weights]
            if not names:
                continue
            moments = moments_of(pair, reading[0], names, corrects, block)
            found = {name: block.found[name] if name in block.folded else None for name in names}
            scales = {name: None if each is None else each.scale for name, each in found.items()}
            for _, each in groupby(names, key=lambda name: (id(scales[name]), *map(id, moments[name]))):
                alike = list(each)
                taken, *_ = [moments.pop(name) for name in alike]
                own, crosses = in_original_units(taken, scales[alike[0]], moments.values())
                del taken, _
                targets = [block.original(name) for name in alike]
                if crosses:  # from then on nobody holds C
                    targets = corrected(targets, crosses.pop(), own, share)
                for name in alike:
                    block.known[name] = replace(block.known[name], moment=own)
                del own
                block.round(alike, targets)
                if self._reconstruction is not None:
                    aims |= {name: self._aim(block, name, target) for name, target in zip(alike, targets, strict=True)}
                del targets  # before the next ones' moments are summed
            pair.put({f"{name}.weight": block.weight(name) for name in names})
        if self._reconstruction is not None and aims:
            self._reconstruct(self._reconstruction, pair, block, aims)
        pair.advance(corrects)

    @staticmethod
    def _aim(block: Block, name: str, target: Tensor) -> Aim:
        rounded = block.rounded(name)
        columns = None if rounded.scale is None or name in block.folded else 1 / rounded.scale
        return Aim(rounded, target, block.row_scale.get(name), columns, block.stored(name, rounded.grid))

    def _reconstruct(self, wanted: Reconstruction, pair: Pair, block: Block, aims: dict[str, Aim]) -> None:
        inside = {name: name.removeprefix(f"{pair.name}.") for name in aims}
        with block.timed(list(aims)):
            own = {inside[name]: aim for name, aim in aims.items()}
            earlier, self._descent = self._descent, None
            given = block.recipe.correction, self._left_out, self._step_tokens
            reconstructor = Reconstructor(pair, own, *given, earlier)
            del earlier  # unless it goes on
            before, after = reconstructor.run(wanted, block.recipe.seed)
            self.errors[pair.name] = before, min(before, after)
            for name in aims:
                block.move(name, *reconstructor.linears[inside[name]].moved())
            self._descent = reconstructor.descent if reconstructor.descent.is_small else None
        pair.put({f"{name}.weight": block.weight(name) for name in aims})
