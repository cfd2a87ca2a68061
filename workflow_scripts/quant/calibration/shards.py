"""Calibration statistics in shards: each a pass over some of the sequences, whose sums a last job adds up.

Which sequences and tokens are sampled is drawn over all of them, so any number of shards gives the same statistics but
for the rounding of float32 sums, and one number of them the same bytes every time.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quant.calibration.blocks import Run, empty, fill
from quant.calibration.expert_moments import WHOLE, Keeping, rooms
from quant.calibration.material import Material
from quant.calibration.preactivation_sums import Preactivations, TokenSample
from quant.calibration.second_moments import to_triangle
from quant.calibration.statistics import POOL, PRESAMPLE, Collected, Watch, activation_of
from quant.calibration.sums import InputSums, OutputSums
from quant.data.tokens import Shard
from quant.errors import InputError
from quant.files import tensorfile
from quant.files.artifacts import require
from quant.files.tensorfile import TensorFile
from quant.models.structure.experts import routing
from quant.models.structure.linears import all_linears, decoder_blocks, skeleton
from quant.runtime.compute import Compute


class Part(NamedTuple):
    """A shard's files: sums, samples and names, and the outer products."""

    sums: str
    moments: str


def collect_shard(material: Material, shard: Shard, part: Part, compute: Compute, keeping: Keeping = WHOLE) -> None:
    """A pass over a shard's sequences."""
    lengths = [len(ids) for ids in material.tokens.sequences]
    first, sequences = shard.of(material.tokens.sequences)
    run = Run(material.checkpoint, sequences, *compute, progress="calibration") if sequences else None
    reads: dict[str, str] = {}
    seen: dict[str, int] = {}
    small: dict[str, Tensor] = {}
    with tensorfile.appending(part.moments, run.n_linears if run else 0) as moments:
        if run is not None:
            activation, (room, _) = activation_of(run.model), rooms(run.blocks, keeping)
            samples = TokenSample(lengths, first=first), TokenSample(lengths, POOL, first)
            for _, prefix, block, advance in run.each():
                watch = Watch(block, activation, *samples, room)
                advance(watch.observe)
                watch.close()
                reads |= {f"{prefix}.{name}": f"{prefix}.{source}" for name, source in watch.reads.items()}
                seen |= {f"{prefix}.{name}": n for name, n in watch.tokens.items()}
                small |= {f"{prefix}.{name}": value for name, value in state(watch).items()}
                for name, sums in (watch.inputs | watch.common).items():
                    if sums.outer is not None:
                        moments.put(f"{prefix}.{name}", to_triangle(sums.outer))
        made = material.provenance | shard._asdict()
        moments.metadata = {"reads": json.dumps(reads), "seen": json.dumps(seen), "provenance": json.dumps(made)}
        tensorfile.save(part.sums, small, moments.metadata)


def state(watch: Watch) -> dict[str, Tensor]:
    """A watch's sums and samples by name, without the outer products."""
    found: dict[str, Tensor] = {}
    for kind, inputs in (("input", watch.inputs), ("common", watch.common)):
        for name, sums in inputs.items():
            count = torch.tensor([sums.count], dtype=torch.float64)
            found |= {f"{name}.{kind}.count": count, f"{name}.{kind}.sums": sums.sums.cpu()}
    for name, of_output in watch.outputs.items():
        assert of_output.center is not None
        count = torch.tensor([of_output.count], dtype=torch.float64)
        found |= {f"{name}.output.count": count, f"{name}.output.sums": of_output.sums.cpu()}
        found[f"{name}.output.center"] = of_output.center.cpu()
    for name, of_tokens in watch.preactivations.items():
        found |= {f"{name}.{key}": value for key, value in of_tokens.results().items()}
    for name, rows in watch.pooled.items():
        if rows:
            found[f"{name}.pooled"] = torch.cat(rows).cpu()
    return found


class Opened(NamedTuple):
    """A shard's files while they are read; reads, seen: by linear, what it reads and how many tokens it saw."""

    sums: TensorFile
    moments: TensorFile
    reads: dict[str, str]
    seen: dict[str, int]

    def restore(self, watch: Watch, prefix: str, device: torch.device) -> None:
        """Adds what the shard saw of a block to a watch that has been given those before it."""
        inside = len(prefix) + 1
        for full, source in self.reads.items():
            if full.startswith(f"{prefix}."):
                name = full[inside:]
                watch.tokens[name] = watch.tokens.get(name, 0) + self.seen.get(full, 0)
                if watch.reads.setdefault(name, source[inside:]) != source[inside:]:
                    raise InputError(f"{full} reads a different input from one shard to the next; use shards: 1")
        for full in sorted(self.sums.names):
            name, _, key = full[inside:].rpartition(".")
            if not full.startswith(f"{prefix}."):
                continue
            if key == "sums":
                self._add(watch, full.removesuffix(".sums"), name, prefix, device)
            elif key == "sample":
                low, high, sample = (self.sums.get(f"{prefix}.{name}.{each}") for each in ("z_min", "z_max", "sample"))
                watch.preactivations.setdefault(name, Preactivations()).merge(low, high, sample)
            elif key == "pooled":
                watch.pooled[name].append(self.sums.get(full, device))

    def _add(self, watch: Watch, full: str, named: str, prefix: str, device: torch.device) -> None:
        name, _, kind = named.rpartition(".")
        count, sums = self.sums.get(f"{full}.count").item(), self.sums.get(f"{full}.sums", device)
        if kind == "output":
            known = watch.outputs.setdefault(name, OutputSums(sums.shape[1], device, watch.activation))
            known.merge(count, self.sums.get(f"{full}.center", device), sums)
            return
        inputs = watch.inputs if kind == "input" else watch.common
        triangle = f"{prefix}.{name}"
        folded = self.moments.get(triangle, device) if triangle in self.moments.names else None
        inputs.setdefault(name, InputSums(sums.shape[1], device, with_moment=False)).merge(count, sums, folded)


@contextlib.contextmanager
def opened(material: Material, parts: Sequence[Part]) -> Iterator[list[Opened]]:
    """The parts in their order; refused is what was made from something else, or is another shard."""
    with contextlib.ExitStack() as stack:
        found = []
        for i, part in enumerate(parts):
            sums, moments = (stack.enter_context(tensorfile.opened(path)) for path in part)
            expected = material.made_from | {"token_fingerprint": material.tokens.fingerprint, "shard": i}
            for file in (sums, moments):
                require(file.path, file.info("provenance"), **expected, shards=len(parts))
            found.append(Opened(sums, moments, sums.info("reads"), sums.info("seen")))
        yield found


@torch.inference_mode()
def sum_shards(
    material: Material,
    parts: Sequence[Part],
    channels_path: str | Path,
    moments_path: str | Path,
    preactivations_path: str | Path,
    compute: Compute,
    keeping: Keeping = WHOLE,
) -> None:
    """What `statistics.collect` writes, from all shards. Where experts lean on their layer's pooled tokens these run
    through them here; nothing else needs the weights."""
    model = skeleton(material.checkpoint)
    prefix, blocks = decoder_blocks(model)
    tied: dict[str, Any] = model.get_expanded_tied_weights_keys(all_submodels=True)
    activation, (room, _) = activation_of(model), rooms(blocks, keeping)
    collected = Collected(material, keeping.dtype)
    with (
        opened(material, parts) as shards,
        tensorfile.opened(material.checkpoint / "model.safetensors") as weights,
        tensorfile.appending(moments_path, len(all_linears(model))) as moments,
    ):
        for index, block in enumerate(blocks):
            name = f"{prefix}.{index}"
            mixed = bool(routing(block))
            device = torch.device(compute.device if mixed else "cpu")
            if mixed:
                fill(block, name, weights, compute.device, compute.dtype, tied)
            watch = Watch(block, activation, TokenSample([]), None, room)
            for shard in shards:
                shard.restore(watch, name, device)
            for linear, of_tokens in watch.preactivations.items():
                if any(linear.startswith(f"{experts}.") for experts in watch.pooled):
                    of_tokens.cut(PRESAMPLE)  # of what each shard kept
            watch.pool()
            watch.lean()
            watch.close()
            collected.add(name, watch, moments)
            empty(block)
        collected.save(moments, channels_path, preactivations_path)
