"""Steps and norms of a quantised model tuned on KL(original ‖ quantised) over calibration text; codes and zeros stay.

A step becomes step·exp(δ). AdamW without decay, a cosine after a warm-up. Blocks are run again for their gradients, so
that of their inside one is in memory at a time. A part of the text is held out, and what serves it best is kept, the
start included.
"""

import contextlib
import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from quant.checkpoints.loading import load
from quant.data.tokens import Batch, batches
from quant.errors import InputError
from quant.files import tensorfile
from quant.methods.with_model.insides import Insides, run_again
from quant.methods.with_model.kernels import weight_kernels
from quant.methods.with_model.kl_loss import divergence
from quant.methods.with_model.teacher import Teacher
from quant.models.structure.architectures import ARCHITECTURES
from quant.models.structure.experts import unroll
from quant.models.structure.linears import decoder_blocks
from quant.recipe import grids
from quant.recipe.grids import Codes
from quant.runtime.replay import Replay, fast_products, recordable, set_rate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("quant")

BETAS, WARM_UP = (0.9, 0.95), 0.05
LOGIT_BYTES = 2**30  # of one model's logits at a time, in float32; three times that is held


@dataclass(frozen=True)
class Tuning:
    """epochs over the text; AdamW's rate; sequences a step; share of the sequences held out."""

    epochs: int
    rate: float
    batch: int
    held_out: float

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "Tuning":
        return cls(**{field.name: entry[field.name] for field in fields(cls)})


class TunedLinear(nn.Module):
    """(codes - zero)·step·exp(change); with `as_stored`, by the steps that a file of step's dtype would hold."""

    def __init__(self, codes: Codes, bias: nn.Parameter | None, device: str) -> None:
        super().__init__()
        self._given = codes
        self.bias, self.as_stored = bias, False
        self._codes, self._zero = codes.codes.to(device), codes.zero.to(device)
        self._step = codes.step.to(device, torch.float32)
        self.change = nn.Parameter(torch.zeros_like(self._step[:: codes.grid.rows]))  # one for rows that share a step

    @property
    def step(self) -> Tensor:
        """[out, n_groups, 1]."""
        step = self._step * grids.to_rows(self.change.exp(), self._given.grid, len(self._step))
        return self._stored(step) if self.as_stored else step

    @property
    def moves(self) -> bool:
        """Whether its steps are tuned: not those that depend on each other's, of which a small change makes none or a
        large one."""
        return not self._given.grid.steps.together

    def _stored(self, step: Tensor) -> Tensor:
        known = self._given
        return grids.stored_step(step, known.step.dtype, steps=known.grid.steps, unit=known.unit)

    @property
    def weight(self) -> Tensor:
        """[out, in], float32."""
        given, plain = self._given, self._given.grid.rows == 1 and not self._codes.dtype.is_floating_point
        if self._codes.is_cuda and plain and (fused := weight_kernels()) is not None and fused.takes(self._codes):
            steps = (self.step, None) if self.as_stored else (self._step, self.change)
            return fused.weight(self._codes, *steps, self._zero, given.n_in)
        step = self.step
        units = self._codes.to(step.dtype) - self._zero.to(step.dtype)
        return grids.from_groups(units * step, self._given.n_in)

    def tuned(self) -> Codes:
        """In float32."""
        step = self._stored(self.step).detach()
        return self._given._replace(codes=self._codes.to(step.dtype), step=step, zero=self._zero.to(step.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)


class TunedNorm(nn.Module):
    """A norm whose weight is tuned in float32; it computes with it in its own type or, with `as_stored`, as a file has
    it. weight: at the start; stored: the file's type; dead: where it stays as it is."""

    def __init__(self, norm: nn.Module, weight: Tensor, stored: torch.dtype, dead: Tensor) -> None:
        super().__init__()
        self.as_stored, self._norm, self._stored = False, norm, stored
        self._dtype = norm.get_parameter("weight").dtype
        self.tuned = nn.Parameter(weight)
        self._dead = dead if dead.any() else None

    @property
    def weight(self) -> Tensor:
        """[channels]."""
        own: Tensor = self.tuned
        own = own if self._dead is None else torch.where(self._dead, own.detach(), own)
        return (own.to(self._stored) if self.as_stored else own).to(self._dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self._norm, {"weight": self.weight}, args, kwargs)


def norms_to_tune(kind: str, prefix: str, depth: int, model: nn.Module) -> dict[str, float]:
    """Full names of the norms to tune, those that feed linears, as far as the architecture is known, and the last; what
    each adds to its weight."""
    known = ARCHITECTURES[kind].groups if kind in ARCHITECTURES else ()
    within = {group.fold.module: group.fold.offset for group in known if group.fold.kind == "norm"}
    names = {f"{prefix}.{layer}.{name}": offset for layer in range(depth) for name, offset in within.items()}
    last = prefix.rpartition(".")[0] + ".norm"
    offset = next(iter(within.values()), 0.0)
    return names | {name: offset for name, _ in model.named_modules() if known and name == last}


def student_of(
    original: "PreTrainedModel",
    file: tensorfile.TensorFile,
    codes: dict[str, Codes],
    device: str,
    ends: Mapping[str, Tensor],
) -> "PreTrainedModel":
    """The quantised model, sharing with the original what quantisation left alone; ends: other weights of embedding and
    head by module, those that share one alike."""
    student = copy.deepcopy(original, {id(each): each for each in original.parameters()})
    for name, parameter in student.named_parameters():
        if name in file.names and parameter.ndim == 1:  # norms and biases, some of which took over a scale
            owner = student.get_submodule(name.rpartition(".")[0])
            value = file.get(name, device, parameter.dtype)
            setattr(owner, name.rpartition(".")[2], nn.Parameter(value, requires_grad=False))
    for name, own in codes.items():
        parent, _, child = name.rpartition(".")
        linear = student.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        setattr(student.get_submodule(parent), child, TunedLinear(own, linear.bias, device))
    shared: dict[int, nn.Parameter] = {}
    for name, weight in ends.items():
        held = original.get_submodule(name).get_parameter("weight")
        if id(held) not in shared:
            shared[id(held)] = nn.Parameter(weight.to(device, held.dtype), requires_grad=False)
        student.get_submodule(name).weight = shared[id(held)]
    return student


def split(n: int, held_out: float, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """Of n sequences the part held out, in its order, and the rest as drawn."""
    held = max(1, round(held_out * n))
    if held == n:
        raise InputError("tune: one sequence leaves none to hold out; use more calibration text")
    drawn = torch.randperm(n, generator=generator).tolist()
    return sorted(drawn[:held]), drawn[held:]


def rate_at(step: int, steps: int) -> float:
    """Of the rate: a linear warm-up over WARM_UP of the steps, then a cosine to nothing."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Known(NamedTuple):
    """A batch, and what the original's last block puts out for it [n, width, hidden], where that was kept."""

    batch: Batch
    states: Tensor | None = None


class Tuner:
    """A quantised model beside its original."""

    def __init__(
        self,
        original: "PreTrainedModel",
        file: tensorfile.TensorFile,
        codes: dict[str, Codes],
        device: str,
        ends: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        self._teacher, self._device = Teacher(original.requires_grad_(False), device), device
        self.student = student_of(original, file, codes, device, ends)
        prefix, blocks = decoder_blocks(self.student)
        self._blocks, self._insides = list(blocks), Insides(len(blocks))
        config = original.config.get_text_config()
        tuned = {name: each for name, each in self.student.named_modules() if isinstance(each, TunedLinear)}
        self.linears = {name: tuned[name] for name in codes}
        self.norms: dict[str, nn.Parameter] = {}
        layout = file.layout()
        for name, offset in norms_to_tune(config.model_type, prefix, len(blocks), self.student).items():
            weight = file.get(f"{name}.weight", device, torch.float32)
            # a channel of nothing has no fold that would make it something
            dead = (weight + offset).abs() < torch.finfo(torch.float32).tiny
            tuned_norm = TunedNorm(self.student.get_submodule(name), weight, layout[f"{name}.weight"][0], dead)
            parent, _, child = name.rpartition(".")
            setattr(self.student.get_submodule(parent), child, tuned_norm)
            self.norms[name] = tuned_norm.tuned
        moving = [linear.change for linear in self.linears.values() if linear.moves]
        self.parameters = moving + list(self.norms.values())
        self._rows = max(1, LOGIT_BYTES // (4 * config.vocab_size))

    @contextlib.contextmanager
    def _stored(self) -> Iterator[None]:
        """The student as its file would have it."""
        switched = [each for each in self.student.modules() if isinstance(each, TunedLinear | TunedNorm)]
        for each in switched:
            each.as_stored = True
        try:
            yield
        finally:
            for each in switched:
                each.as_stored = False

    def _sum(self, batch: Batch, states: Tensor | None = None) -> Tensor:
        """Σ divergence over a batch's tokens; states [n, width, hidden]: the original's, where they were kept."""
        ids, mask = batch.ids.to(self._device), batch.mask
        wanted = self._teacher.logits(ids, states).flatten(0, 1)
        found = self.student(input_ids=ids, use_cache=False).logits.flatten(0, 1)
        if mask is not None:
            rows = mask.flatten().to(self._device)
            wanted, found = wanted[rows], found[rows]
        return divergence(wanted, found)

    def gradients(self, parts: Sequence[Known]) -> Tensor:
        """Adds the mean divergence's gradients to the parameters' and returns it."""
        n, total = sum(part.batch.lengths.sum() for part in parts), torch.zeros((), device=self._device)
        with run_again(self._blocks, self._insides):
            for part in parts:
                loss = self._sum(*part) / n
                loss.backward()
                total = total + loss.detach()
        return total

    def parts(self, sequences: list[Tensor], states: list[Tensor] | None = None) -> Iterator[Known]:
        """Sequences in batches, with the original's states of them, where they were kept."""
        for batch in batches(sequences, self._rows):
            own = None
            if states is not None:
                some = states[batch.first : batch.first + len(batch.ids)]
                own = torch.nn.utils.rnn.pad_sequence(some, batch_first=True).to(self._device)
            yield Known(batch, own)

    def _descend(self, parts: list[Known], optimizer: torch.optim.Optimizer, replay: Replay) -> None:
        """One step down the mean divergence."""

        def step(*given: Tensor) -> None:
            optimizer.zero_grad(set_to_none=True)
            ids, states = given[: len(parts)], given[len(parts) :] or [None] * len(parts)
            own = [Known(part.batch._replace(ids=i), s) for part, i, s in zip(parts, ids, states, strict=True)]
            self.gradients(own)
            optimizer.step()

        kind = tuple((part.batch.ids.shape, *part.batch.lengths.tolist()) for part in parts)
        kept = [part.states for part in parts if part.states is not None]
        replay(kind, step, *(part.batch.ids.to(self._device) for part in parts), *kept)

    @torch.no_grad()
    def measure(self, sequences: list[Tensor], states: list[Tensor] | None = None) -> float:
        """Mean divergence of what the file would hold, nats a token."""
        with self._stored():
            found = torch.stack([self._sum(*part) for part in self.parts(sequences, states)])
            return float(found.sum(dtype=torch.float64)) / sum(map(len, sequences))

    def tune(self, sequences: list[Tensor], tuning: Tuning, seed: int) -> dict[str, Any]:
        """Leaves the parameters where the held-out part fares best; says what that part's divergence was at the start
        and is, and after which epoch (0: the start)."""
        generator = torch.Generator().manual_seed(seed)
        kept = self._teacher.keep(sequences, self._rows)

        def given(order: Sequence[int]) -> tuple[list[Tensor], list[Tensor] | None]:
            return [sequences[i] for i in order], None if kept is None else [kept[i] for i in order]

        held, text = split(len(sequences), tuning.held_out, generator)
        steps, done = tuning.epochs * -(-len(text) // tuning.batch), 0
        device = torch.device(self._device)
        optimizer = torch.optim.AdamW(**recordable(device, [self.parameters]), betas=BETAS, weight_decay=0.0)
        replay = Replay(device)
        with tqdm(total=steps, desc="tune", unit="step") as bar, sdpa_kernel(SDPBackend.MATH):  # the same every time
            start = least = self.measure(*given(held))
            best, best_epoch = [p.detach().clone() for p in self.parameters], 0
            for epoch in range(1, tuning.epochs + 1):
                order = torch.randperm(len(text), generator=generator).tolist()
                for first in range(0, len(text), tuning.batch):
                    set_rate(optimizer.param_groups[0], tuning.rate * rate_at(done, steps))
                    with fast_products():
                        own = given([text[i] for i in order[first : first + tuning.batch]])
                        self._descend(list(self.parts(*own)), optimizer, replay)
                    done += 1
                    bar.update()
                found = self.measure(*given(held))
                logger.info("epoch %d: divergence %.4f of the part held out (start %.4f)", epoch, found, start)
                if found < least:
                    least, best_epoch = found, epoch
                    best = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            for parameter, value in zip(self.parameters, best, strict=True):
                parameter.copy_(value)
        if best_epoch == 0:
            logger.warning("tuning made the part held out no better; the start is kept")
        return {"kl_start": start, "kl_tuned": least, "epoch": best_epoch}


def load_original(path: Path, device: str, dtype: torch.dtype) -> "PreTrainedModel":
    """In float32 where the model's own type is float16, whose range gradients leave."""
    return unroll(load(path, device, torch.float32 if dtype == torch.float16 else dtype))
