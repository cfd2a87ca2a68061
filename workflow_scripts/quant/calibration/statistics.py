"""Calibration statistics of every linear, in one pass over the decoder blocks.

Per input that linears read: E|x|, E[x²], E[x] and the second moment H = E[xxᵀ]. Per linear y = Wx + b, z its output:
E z, std z, E|z|, E|act(z)|, its range, and z itself at sampled tokens. Linears that read the same tensor (q/k/v;
gate/up) share one input, found by watching the model run. H is summed in float32, everything else in float64.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quant.calibration.blocks import Run
from quant.calibration.expert_moments import WHOLE, Keeping, kinds, own, rooms
from quant.calibration.material import Material
from quant.calibration.preactivation_sums import Preactivations, TokenSample
from quant.calibration.sums import InputSums, OutputSums
from quant.data.tokens import Batch
from quant.errors import InputError
from quant.files import tensorfile
from quant.models.structure.experts import routing
from quant.models.structure.linears import linear_names
from quant.models.structure.unrolled import Unrolled
from quant.runtime.compute import Compute

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("quant")

POOL = 2048  # tokens of a layer that its experts of few tokens lean on
PRESAMPLE = 16  # pre-activations of an expert that are kept


def token_rows(t: Tensor, batch: Batch, routed: Tensor | None = None) -> Tensor:
    """[n, width, channels], or [n·width, channels] as some MLPs see it → the real tokens' rows [tokens, channels].

    routed: where an expert sees some rows only, which of the n·width they are.
    """
    rows, mask = t.reshape(-1, t.shape[-1]), batch.mask
    if routed is None and len(rows) != batch.ids.numel():
        raise InputError(
            f"a linear sees {len(rows)} rows where the batch has {batch.ids.numel()} tokens: mixture of experts, or "
            "another layout that is not known here; leave this model out"
        )
    if mask is None:
        return rows
    kept = mask.flatten().to(t.device)
    return rows[kept if routed is None else kept[routed]]


def real_rows(t: Tensor, batch: Batch, routed: Tensor | None = None) -> Tensor:
    """`token_rows` in float32."""
    return token_rows(t, batch, routed).float()


class Watch:
    """Hooks on a block's linears that feed the sums with real tokens only, an expert's with those routed to it.

    room: bytes for experts' own moments (expert_moments).
    """

    def __init__(
        self,
        block: nn.Module,
        activation: Callable[[Tensor], Tensor],
        sample: TokenSample | None,
        pool: TokenSample | None = None,
        room: float = float("inf"),
    ) -> None:
        self.inputs: dict[str, InputSums] = {}  # by the first linear that reads the input
        self.outputs: dict[str, OutputSums] = {}
        self.preactivations: dict[str, Preactivations] = {}
        self.reads: dict[str, str] = {}
        self.tokens: dict[str, int] = {}  # by linear: how many it saw
        self._batch: Batch  # that runs
        self._seen: dict[tuple[int, torch.Size], tuple[str, Tensor]] = {}
        self.activation, self._sample, self._rows = activation, sample, torch.empty(0)
        self._experts, self._pool, self._drawn = routing(block), pool, torch.empty(0)
        self.pooled: dict[str, list[Tensor]] = {name: [] for name in self._experts}
        self._leaning, self._full = False, set[str]()
        self._short = {kind: n for kind, n in own(kinds(block), room).items() if n < len(kind.readers)}
        self.common: dict[str, InputSums] = {}  # by kind
        # kinds, by the inputs that have no moment of their own
        self.lent = {name: kind.name for kind, n in self._short.items() if not n for name in kind.readers}
        self._hooks = [
            block.get_submodule(name).register_forward_hook(self._hook(name)) for name in linear_names(block)
        ]
        for name, module in self._experts.items():
            self._hooks.append(module.register_forward_pre_hook(self._keep(name, module)))

    def observe(self, batch: Batch) -> None:
        self._batch, self._seen = batch, {}
        if self._sample is not None:
            self._rows = self._sample.rows(batch)
        if self._pool is not None:
            self._drawn = self._pool.rows(batch)

    def _keep(self, name: str, experts: Unrolled) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            given = experts.tokens(args[0], self._batch.ids.numel())
            self.pooled[name].append(token_rows(given, self._batch)[self._drawn.to(given.device)])

        return keep

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(module: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
            x = args[0]
            routed = getattr(module, "rows", None)
            # the tensor is kept until the batch ends, so its address is its own
            source, _ = self._seen.setdefault((x.data_ptr(), x.shape), (name, x))
            if self.reads.setdefault(name, source) != source:
                raise InputError(f"{name}: reads a different input from one batch to the next; leave this model out")
            if self._leaning:
                missing = x.shape[-1] - self.tokens.setdefault(name, 0)
                if missing > 0:
                    self._add(name, source, x, z, missing / len(x), torch.arange(min(len(z), PRESAMPLE)))
                return
            known, rows = token_rows(x, self._batch, routed), token_rows(z, self._batch, routed)
            before = self.tokens.get(name, 0)
            self.tokens[name] = before + len(rows)
            if not len(rows):  # of padding alone
                return
            kept = self._rows if routed is None else torch.arange(min(len(rows), max(0, PRESAMPLE - before)))
            self._add(name, source, known, rows, 1.0, kept)

        return record

    def _add(self, name: str, source: str, x: Tensor, z: Tensor, weight: float, kept: Tensor) -> None:
        if source == name:
            kind = self.lent.get(name)
            if name not in self.inputs:
                self.inputs[name] = InputSums(x.shape[-1], x.device, kind is None)
            self.inputs[name].add(x, weight)
            if kind is not None and not (self._leaning and kind in self._full):
                if kind not in self.common:
                    self.common[kind] = InputSums(x.shape[-1], x.device)
                self.common[kind].add(x, weight)
        if name not in self.outputs:
            self.outputs[name] = OutputSums(z.shape[-1], z.device, self.activation)
        self.outputs[name].add(z, weight)
        if self._sample is not None:
            self.preactivations.setdefault(name, Preactivations()).add(z, kept)

    def pool(self) -> None:
        """Where the room is for some experts' moments only: theirs who saw most tokens, and the mean of all."""
        for kind, n in self._short.items():
            known = [self.inputs[name] for name in kind.readers if name in self.inputs]
            if not known:  # of no expert is there anything to choose by
                self.lent |= dict.fromkeys(kind.readers, kind.name)
            if not n or not known:
                continue
            pooled = self.common[kind.name] = InputSums(kind.width, known[0].sums.device)
            for sums in known:
                pooled.merge(sums.count, folded=None if sums.folded is None else sums.folded.clone())
                if sums.outer is not None and pooled.outer is not None:
                    pooled.outer += sums.outer
            for name in sorted(kind.readers, key=lambda name: -self.tokens.get(name, 0))[n:]:
                self.lent[name] = kind.name
                if name in self.inputs:
                    self.inputs[name].lend()

    def lean(self) -> None:
        """Gives each linear of an expert that saw n tokens, fewer than its d inputs, what the layer's pooled tokens
        would say there, at the weight of d - n of them: H = (n·H_expert + (d - n)·H_pooled)/d."""
        self._leaning, self._full = True, set(self.common)
        for name, module in self._experts.items():
            if not self.pooled[name]:
                continue
            pooled = torch.cat(self.pooled[name])
            for index in range(module.num_experts):
                linears = module.linears(index)
                if any(self.tokens.get(f"{name}.{leaf}", 0) < each.in_features for leaf, each in linears):
                    self._seen = {}
                    module.one(index, pooled)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def activation_of(model: "PreTrainedModel") -> Callable[[Tensor], Tensor]:
    """The model's own MLP activation, by the name that its configuration gives it."""
    from transformers.activations import ACT2FN

    config = model.config.get_text_config()
    keys = ("hidden_activation", "hidden_act", "activation_function", "activation")
    name = next((found for found in (getattr(config, key, None) for key in keys) if found), "silu")
    return ACT2FN[name]


def collect(
    material: Material,
    channels_path: str | Path,
    moments_path: str | Path,
    compute: Compute,
    preactivations_path: str | Path | None = None,
    keeping: Keeping = WHOLE,
) -> None:
    """One pass; writes the small per-channel statistics, the second moments, one triangle of each, and where a path is
    given the ranges and samples of z, as files. keeping: how second moments are."""
    sequences = material.tokens.sequences
    run = Run(material.checkpoint, sequences, *compute, progress="calibration")
    activation = activation_of(run.model)
    sample = None if preactivations_path is None else TokenSample([len(ids) for ids in sequences])
    pool = TokenSample([len(ids) for ids in sequences], POOL)
    collected = Collected(material, keeping.dtype)
    room, words = rooms(run.blocks, keeping)
    if words:
        logger.info(words)
    with tensorfile.appending(moments_path, run.n_linears) as moments:
        for _, prefix, block, advance in run.each():
            watch = Watch(block, activation, sample, pool, room)
            advance(watch.observe)
            watch.pool()
            watch.lean()
            watch.close()
            collected.add(prefix, watch, moments)
        collected.save(moments, channels_path, preactivations_path)


class Collected:
    """What the blocks' watches saw, on its way to files."""

    def __init__(self, material: Material, dtype: torch.dtype) -> None:
        self._dtype = dtype  # of second moments
        self._made = material.provenance | {"tokens": material.tokens.count}
        self._reads: dict[str, str] = {}
        self._seen: dict[str, int] = {}
        self._lent: dict[str, str] = {}
        self._small: dict[str, Tensor] = {}
        self._preactivations: dict[str, Tensor] = {}

    def add(self, prefix: str, watch: Watch, moments: tensorfile.Appender) -> None:
        """A block's, its second moments to their file at once."""
        self._seen |= {f"{prefix}.{name}": n for name, n in watch.tokens.items()}
        found: dict[str, Tensor] = {}
        for name, sums in (watch.inputs | watch.common).items():
            if sums.has_moment:
                triangle = sums.triangle()
                check_statistic(f"{prefix}.{name}", triangle)
                moments.put(f"{prefix}.{name}", triangle.to(self._dtype))
        for name, sums in watch.inputs.items():
            found |= {f"{prefix}.{name}.{key}": value for key, value in sums.means().items()}
        for name, of_output in watch.outputs.items():
            found |= {f"{prefix}.{name}.{key}": value for key, value in of_output.means().items()}
        kept = {
            f"{prefix}.{name}.{key}": value
            for name, of_tokens in watch.preactivations.items()
            for key, value in of_tokens.results().items()
        }
        for name, value in (found | kept).items():
            check_statistic(name, value)
        self._small |= found
        self._preactivations |= kept
        self._reads |= {f"{prefix}.{name}": f"{prefix}.{source}" for name, source in watch.reads.items()}
        self._lent |= {
            f"{prefix}.{name}": f"{prefix}.{kind}" for name, kind in watch.lent.items() if name in watch.inputs
        }

    def save(
        self, moments: tensorfile.Appender, channels_path: str | Path, preactivations_path: str | Path | None
    ) -> None:
        """All but the second moments, and what their file says."""
        metadata = {
            name: json.dumps(value)
            for name, value in (("reads", self._reads), ("seen", self._seen), ("provenance", self._made))
        }
        moments.metadata = metadata | {"lent": json.dumps(self._lent)}
        tensorfile.save(channels_path, self._small, metadata)
        if preactivations_path is not None:
            tensorfile.save(preactivations_path, self._preactivations, metadata)


def check_statistic(name: str, value: Tensor) -> None:
    """Refuses NaN and infinities by name."""
    if value.numel() and not torch.isfinite(torch.stack([value.amin(), value.amax()])).all():  # without a copy of it
        raise InputError(f"{name}: its statistics are NaN or infinite; set compute.dtype to float32")
