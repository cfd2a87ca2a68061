"""Second moments weighted by what an error costs the model: the true Fisher information of each linear's outputs.

GuidedQuant (Kim et al. 2025, arXiv 2505.07004) and sketch A of YAQA (arXiv 2505.22988). ℓ is the cross entropy, summed
over a sequence, against labels drawn from the model's own distribution; a linear's rows fall into parts, and in part k
token t weighs ω_tk = mean_j (∂ℓ/∂z_tj)² over its outputs j. H_k = Σ_t ω_tk x_t x_tᵀ / Σ_t ω_tk. Tokens that are not
routed to an expert weigh nothing there.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from quant.calibration.blocks import Arguments, Run, empty, fill
from quant.calibration.channels import OF_INPUT
from quant.calibration.embedding_moments import EmbeddingSums, HeadSums
from quant.calibration.material import Material
from quant.calibration.parts import row_parts
from quant.calibration.second_moments import add_outer, dots, mirror, to_triangle
from quant.calibration.statistics import real_rows
from quant.data.tokens import Batch
from quant.errors import InputError
from quant.files import spool, tensorfile
from quant.models.structure.linears import linear_names
from quant.models.structure.notes import Note, noting
from quant.runtime.compute import Compute

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPAN = 256  # labels
AGAIN = 0.05  # of a block's output: what running it again may differ by


class FisherSums:
    """H_k, each ω_k and its mean, and E_ω|x|, E_ω[x²] and E_ω[x] under ω's mean over all outputs."""

    def __init__(self, n_in: int, n_out: int, parts: int, device: torch.device) -> None:
        self._rows = row_parts(n_out, parts)
        self._outer = torch.zeros(len(self._rows), n_in, n_in, device=device)
        self._sums = torch.zeros(3, n_in, dtype=torch.float64, device=device)
        self._weights = torch.zeros(len(self._rows), dtype=torch.float64, device=device)
        self._whole = torch.zeros((), dtype=torch.float64, device=device)
        self._omegas = [torch.zeros(parts, 0, device=device)]

    def add(self, x: Tensor, gradient: Tensor) -> None:
        """x [n, in] and ∂ℓ/∂z [n, out] of the same tokens, float32."""
        square = gradient.square()
        self._omegas.append(torch.stack([square[:, rows].mean(1) for rows in self._rows]))
        for k, omega in enumerate(self._omegas[-1]):
            add_outer(self._outer[k], x * omega.sqrt()[:, None])
            self._weights[k] += omega.sum(dtype=torch.float64)
        whole = square.mean(1)
        weighted = x * whole[:, None]
        self._sums[0] += weighted.abs().sum(0)
        self._sums[1] += dots(weighted, x, 0)
        self._sums[2] += weighted.sum(0)
        self._whole += whole.sum(dtype=torch.float64)

    def results(self, n_tokens: int) -> dict[str, Tensor]:
        """moment [parts, ⌈in/2⌉, in + 1] by triangles; omega [parts, tokens that it sees]; fisher [parts], their means
        over all n_tokens of the model; x_abs, x_sq, x_mean [in]."""
        weights, whole = (torch.where(each > 0, each, 1.0) for each in (self._weights, self._whole))
        moment = torch.stack(
            [to_triangle(mirror(h).div_(w.float())) for h, w in zip(self._outer, weights, strict=True)]
        )
        channels = (self._sums / whole).float().cpu()
        fisher = (self._weights / n_tokens).float().cpu()
        omega = torch.cat(self._omegas, dim=1).cpu()
        return {"moment": moment, "omega": omega, "fisher": fisher, **dict(zip(OF_INPUT, channels, strict=True))}


class Sums(Protocol):
    """What is summed over tokens of a linear."""

    def add(self, x: Tensor, gradient: Tensor) -> None: ...

    def results(self, n_tokens: int) -> dict[str, Tensor]: ...


class Given(Note):
    """Stands in the last block's place and returns hidden states that it is given."""

    given: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        super().forward(*args, **kwargs)
        return self.given if self.more is None else (self.given, *[None] * self.more)


class Kept:
    """Hidden states of every block and batch, in a file in a folder that the system may take out of memory."""

    def __init__(self, folder: Path, shapes: list[torch.Size], depth: int, dtype: torch.dtype) -> None:
        sizes = [shape.numel() for shape in shapes] * depth
        whole = spool.room(folder, dtype.itemsize * sum(sizes)).view(dtype)
        views = [part.view(shape) for part, shape in zip(whole.split(sizes), shapes * depth, strict=True)]
        self._states = [views[start : start + len(shapes)] for start in range(0, len(views), len(shapes))]

    def get(self, block: int, batch: int, device: str) -> Tensor:
        return self._states[block][batch].to(device)

    def put(self, block: int, batch: int, states: Tensor) -> None:
        self._states[block][batch].copy_(states)


class Backward(Run):
    """The blocks' linears from the last to the first, each with its inputs and the loss's gradients of its outputs;
    then the head and the embedding."""

    head: HeadSums | None = None
    _length = 0  # of the sequence that runs

    def _summed(self, n_in: int, n_out: int, parts: int, device: torch.device) -> Sums:
        """Of one linear, from nothing."""
        return FisherSums(n_in, n_out, parts, device)

    def _body_and_head(self, weights: tensorfile.TensorFile) -> None:
        """Fills all of the model but its blocks."""
        within = {id(module) for module in self.blocks.modules()}
        elsewhere = self.tied | renamed(self.model, weights)
        for name, module in self.model.named_modules():
            if id(module) in within or any(True for _ in module.children()):
                continue
            if any(True for _ in module.parameters()):
                fill(module, name, weights, self._device, self._dtype, elsewhere)
            else:
                module.to(self._device)

    def _watch_head(self) -> RemovableHandle | None:
        """Sums the head's inputs and gradients; None where it is no linear."""
        head = self.model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            return None

        def hook(module: nn.Linear, args: tuple[Tensor, ...], z: Tensor) -> None:
            h, length = args[0].detach(), self._length
            if self.head is None:
                self.head = HeadSums(h.shape[-1], z.shape[-1], h.device)
            own = self.head
            if z.requires_grad:
                z.register_hook(lambda g: own.add(h[0, :length].float(), g[0, :length].float()))

        return head.register_forward_hook(hook)

    def _loss_gradient(self, hidden: Tensor, batch: Batch, more: int | None, generator: torch.Generator) -> Tensor:
        """∂ℓ/∂h [n, width, hidden] of the last block's output; ℓ summed over the real tokens."""
        found = torch.empty_like(hidden)
        watched = self._watch_head()
        try:
            with noting(self.blocks, Given) as notes, torch.enable_grad():
                last = notes[-1]
                assert isinstance(last, Given)
                for note in notes:
                    note.more = more
                for row, (ids, length) in enumerate(zip(batch.ids, batch.lengths.tolist(), strict=True)):
                    for note in notes:
                        note.forget()
                    last.given = given = hidden[row : row + 1].detach().requires_grad_()
                    self._length = length
                    logits = self.model(input_ids=ids[None].to(self._device), use_cache=False).logits[0, :length]
                    log_p = torch.log_softmax(logits.float(), dim=-1)
                    labels = drawn(log_p.detach(), generator)
                    (-log_p.gather(1, labels[:, None]).sum()).backward()
                    assert given.grad is not None
                    found[row] = given.grad[0]
        finally:
            if watched is not None:
                watched.remove()
        return found

    def _embedding(self, kept: "Kept", gradients: list[Tensor]) -> EmbeddingSums | None:
        """Of what the first block reads; None where that is not as wide as the embedding's rows."""
        module = self.model.get_input_embeddings()
        if not isinstance(module, nn.Embedding) or module.weight.shape[1] != gradients[0].shape[-1]:
            return None
        sums = EmbeddingSums(module.weight.detach())
        for i, (batch, gradient) in enumerate(zip(self.batches, gradients, strict=True)):
            ids = torch.cat([row[:length] for row, length in zip(batch.ids, batch.lengths.tolist(), strict=True)])
            sums.add(ids, real_rows(kept.get(0, i, self._device), batch), real_rows(gradient, batch))
        return sums

    @torch.no_grad()
    def linears(self, parts: int, seed: int, folder: Path, take: Callable[[str, dict[str, Tensor]], None]) -> None:
        """Calls take(full name, `FisherSums.results`) for each linear, then for the head and the embedding what
        calibration/embedding_moments.py sums."""
        generator = torch.Generator().manual_seed(seed)
        with tensorfile.opened(self._checkpoint / "model.safetensors") as weights:
            first, arguments = self.enter(weights)
            n = len(self.batches)
            kept = Kept(folder, [first.get(i).shape for i in range(n)], self.depth + 1, self._dtype)
            for i in range(n):
                kept.put(0, i, first.get(i))
            for index in tqdm(range(self.depth), desc=self._progress, unit="block"):
                self._forward(index, weights, [each[index] for each in arguments], kept)
            self._body_and_head(weights)
            gradients = [
                self._loss_gradient(kept.get(self.depth, i, self._device), batch, self._more, generator)
                for i, batch in enumerate(self.batches)
            ]
            for index in tqdm(reversed(range(self.depth)), desc=f"{self._progress}, back", unit="block"):
                found = self._back(index, weights, [each[index] for each in arguments], kept, gradients, parts)
                for name, value in found.items():
                    take(f"{self.prefix}.{index}.{name}", value)
            names = {id(module): name for name, module in self.model.named_modules()}
            for module, sums in (
                (self.model.get_output_embeddings(), self.head),
                (self.model.get_input_embeddings(), self._embedding(kept, gradients)),
            ):
                if sums is not None:
                    take(names[id(module)], sums.results())

    def _forward(self, index: int, weights: tensorfile.TensorFile, arguments: list[Arguments], kept: Kept) -> None:
        block, name = self.blocks[index], f"{self.prefix}.{index}"
        fill(block, name, weights, self._device, self._dtype, self.tied)
        for i in range(len(self.batches)):
            out = arguments[i].call(block, kept.get(index, i, self._device))
            self._more = len(out) - 1 if isinstance(out, tuple) else None
            out = out[0] if isinstance(out, tuple) else out
            if out.shape[:2] != self.batches[i].ids.shape:
                raise InputError(
                    f"{name}: puts out {list(out.shape)} where its model reads {list(self.batches[i].ids.shape)} "
                    "tokens, of which the end loss is not known; use moment: plain, no budget and row_feedback: 0"
                )
            if not torch.isfinite(out).all():
                raise InputError(
                    f"{name}: activations are NaN or infinite in {self._dtype}; set compute.dtype to float32"
                )
            kept.put(index + 1, i, out)
        empty(block)

    def _back(
        self,
        index: int,
        weights: tensorfile.TensorFile,
        arguments: list[Arguments],
        kept: Kept,
        gradients: list[Tensor],
        parts: int,
    ) -> dict[str, dict[str, Tensor]]:
        """Of each linear within the block; leaves in `gradients` those of its input."""
        block, name = self.blocks[index], f"{self.prefix}.{index}"
        fill(block, name, weights, self._device, self._dtype, self.tied)
        now: list[Batch] = []
        sums: dict[str, Sums] = {}
        for linear in linear_names(block):
            weight = block.get_parameter(f"{linear}.weight")
            sums[linear] = self._summed(weight.shape[1], weight.shape[0], parts, weight.device)

        def watch(own: Sums) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
                x, batch, routed = args[0].detach(), now[0], getattr(module, "rows", None)
                if z.requires_grad:
                    z.register_hook(lambda g: own.add(real_rows(x, batch, routed), real_rows(g, batch, routed)))

            return hook

        hooks = [block.get_submodule(linear).register_forward_hook(watch(own)) for linear, own in sums.items()]
        for i, batch in enumerate(self.batches):
            now[:] = [batch]
            hidden = kept.get(index, i, self._device).detach().requires_grad_()
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the same every time
                out = arguments[i].call(block, hidden)
                out = out[0] if isinstance(out, tuple) else out
                before = kept.get(index + 1, i, self._device)
                if (out.detach() - before).float().norm() > AGAIN * before.float().norm():
                    raise InputError(f"{name}: gives another output when it is run again; use moment: plain")
                out.backward(gradients[i])
            assert hidden.grad is not None
            gradients[i] = hidden.grad
        for hook in hooks:
            hook.remove()
        empty(block)
        n_tokens = sum(int(batch.lengths.sum()) for batch in self.batches)
        return {linear: own.results(n_tokens) for linear, own in sums.items()}


def renamed(model: "PreTrainedModel", weights: tensorfile.TensorFile) -> dict[str, str]:
    """A head's weight that the file holds by another name, which transformers changes as it loads it (GPT-NeoX)."""
    head = model.get_output_embeddings()
    own = {name: value for name, value in model.state_dict(keep_vars=True).items() if value is head.weight}
    unknown = weights.names - set(model.state_dict())
    layout = weights.layout()
    found = {}
    for name, value in own.items():
        alike = [each for each in unknown if layout[each][1] == tuple(value.shape)]
        if name not in weights.names and len(alike) == 1:
            found[name] = alike[0]
    return found


def drawn(log_p: Tensor, generator: torch.Generator) -> Tensor:
    """A label of each row of log-probabilities [n, vocab], by the inverse of its distribution at numbers drawn on the
    CPU. Running sums stand there too, since a GPU's differ from run to run: of spans of labels, then within one."""
    n, vocab = log_p.shape
    p = nn.functional.pad(log_p.double().exp(), (0, -vocab % SPAN)).view(n, -1, SPAN)
    spans = p.sum(2).cpu().cumsum(1)
    at = torch.rand(n, 1, generator=generator, dtype=torch.float64) * spans[:, -1:]
    span = torch.searchsorted(spans, at).clamp_(max=spans.shape[1] - 1)
    inside = p[torch.arange(n), span[:, 0]].cpu().cumsum(1)
    rest = at - spans.gather(1, span) + inside[:, -1:]
    label = span * SPAN + torch.searchsorted(inside, rest)
    return label[:, 0].clamp_(max=vocab - 1).to(log_p.device)


def collect_end_loss(material: Material, out: str, parts: int, seed: int, compute: Compute) -> None:
    """Writes {linear}.moment, .omega, .fisher, .x_abs, .x_sq and .x_mean of every linear, .moment and .rows of the
    embedding and the head; seed: of the labels."""
    write(Backward, material, out, parts, seed, compute)


def write(way: type[Backward], material: Material, out: str, parts: int, seed: int, compute: Compute) -> None:
    """A file of what a backward pass sums."""
    if compute.dtype == torch.float16:  # whose range gradients leave
        compute = compute._replace(dtype=torch.float32)
    run = way(material.checkpoint, material.tokens.sequences, *compute, progress="end loss")
    made = material.provenance | {"parts": parts, "seed": seed}
    with tensorfile.appending(out, run.n_linears + 2) as file:
        file.metadata = {"reads": json.dumps({}), "provenance": json.dumps(made)}

        def take(linear: str, found: dict[str, Tensor]) -> None:
            for key, value in found.items():
                if not torch.isfinite(value).all():
                    raise InputError(f"{linear}: its gradients overflow; use moment: plain and row_feedback: 0")
                file.put(f"{linear}.{key}", value)

        run.linears(parts, seed, Path(out).parent, take)
