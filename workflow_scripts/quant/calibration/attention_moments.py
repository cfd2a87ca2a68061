"""What an error of a linear's outputs does to attention, two outputs at a time: R = E[g gᵀ] [out, out], g the gradient
of scores' log-probabilities, of a key for each query drawn from its softmax. A change of a query's scores by e costs
½·eᵀ (diag p - p pᵀ) e nats of its distribution p over the keys; what that is of q and k, whatever turns, norms or caps
lie between, one gradient within the block says. No pass goes back through the model.

In a drawn key's place stands ξ = (diag √p - p √pᵀ) ε of signs ε, which has the same covariance and less noise.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from quant.calibration.blocks import Arguments, Run, empty, fill
from quant.calibration.material import Material
from quant.calibration.second_moments import add_outer, mirror, to_triangle
from quant.calibration.statistics import check_statistic
from quant.errors import InputError
from quant.files import tensorfile
from quant.models.structure.linears import linear_names
from quant.runtime.compute import Compute

TOKENS = 4096  # that are looked at: a head's R has far fewer numbers than these have gradients
SOFTMAX = {nn.functional.softmax, torch.softmax, Tensor.softmax}


def drawn_signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """±1, int8; drawn on the CPU, so that a GPU's are the same."""
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)


def softmax_root(p: Tensor, signs: Tensor) -> Tensor:
    """ξ [..., n] of signs ε [..., n]: its covariance is that of log p's gradient at a key drawn from p [..., n]."""
    root = p.sqrt()
    return root * signs - p * (root * signs).sum(-1, keepdim=True)


class Softmaxes(TorchFunctionMode):
    """Within it `seen` is called with every attention's scores [n, heads, queries, keys] and their softmax."""

    def __init__(self, seen: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        out = func(*args, **given)
        if func in SOFTMAX:
            scores = args[0] if args else given["input"]
            if scores.ndim == 4 and scores.requires_grad:
                self._seen(scores, out)
        return out


class AttentionRows(Run):
    """The first sequences through the original, one at a time, by products and a softmax of their own (eager)."""

    def __init__(self, material: Material, seed: int, compute: Compute) -> None:
        n, sequences = 0, []
        for sequence in material.tokens.sequences:
            if n and n + len(sequence) > TOKENS:
                break
            sequences.append(sequence)
            n += len(sequence)
        super().__init__(material.checkpoint, sequences, compute.device, compute.dtype, 1, progress="attention")
        self.model.config._attn_implementation = "eager"  # set_attn_implementation refuses older models (Falcon)
        self.n_tokens, self._generator = n, torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def linears(self, take: Callable[[str, Tensor], None]) -> None:
        """Calls take(full name, R by a triangle) for each linear that scores depend on."""
        with tensorfile.opened(self._checkpoint / "model.safetensors") as weights:
            hidden, arguments = self.enter(weights)
            signs = [drawn_signs((len(each), len(each)), self._generator) for each in self._sequences]
            for index in tqdm(range(self.depth), desc=self._progress, unit="block"):
                block, name = self.blocks[index], f"{self.prefix}.{index}"
                fill(block, name, weights, self._device, self._dtype, self.tied)
                sums: dict[str, Tensor] = {}
                for i, of_keys in enumerate(signs):
                    out = self._run(block, arguments[i][index], hidden.get(i), of_keys.to(self._device), sums)
                    hidden.put(i, out)
                empty(block)
                for linear, own in sums.items():
                    take(f"{name}.{linear}", to_triangle(mirror(own).div_(self.n_tokens)))

    def _run(
        self, block: nn.Module, arguments: Arguments, states: Tensor, of_keys: Tensor, sums: dict[str, Tensor]
    ) -> Tensor:
        """The block's output; adds to the sums. of_keys [queries, keys]: signs, which a head's and query's own turn."""
        outputs: dict[str, Tensor] = {}

        def note(linear: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
                outputs[linear] = z

            return hook

        def seen(scores: Tensor, p: Tensor) -> None:
            of_queries = drawn_signs((*p.shape[:3], 1), self._generator).to(p.device)
            p = p.detach()[..., : scores.shape[-1]].float()
            more = max(0, p.shape[3] - of_keys.shape[1])  # sinks, which stand behind the keys
            own = nn.functional.pad(of_keys, (0, more), value=1)[: p.shape[2], : p.shape[3]]
            xi = softmax_root(p, (of_queries * own).float())
            known = list(outputs)
            given = [outputs[linear] for linear in known], xi.to(scores.dtype)
            found = torch.autograd.grad(scores, *given, retain_graph=True, allow_unused=True)
            for linear, gradient in zip(known, found, strict=True):
                if gradient is not None:
                    rows = gradient.reshape(-1, gradient.shape[-1]).float()
                    if linear not in sums:
                        sums[linear] = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
                    add_outer(sums[linear], rows)

        hooks = [block.get_submodule(linear).register_forward_hook(note(linear)) for linear in linear_names(block)]
        try:
            with torch.enable_grad(), Softmaxes(seen):
                out = arguments.call(block, states.detach().requires_grad_())
        finally:
            for hook in hooks:
                hook.remove()
        out = out[0] if isinstance(out, (tuple, list)) else out
        return out.detach()


def collect_attention_rows(material: Material, out: str, seed: int, compute: Compute) -> None:
    """Writes {linear}.rows of every linear that attention's scores depend on; seed: of the signs."""
    if compute.dtype == torch.float16:  # whose range gradients leave
        compute = compute._replace(dtype=torch.float32)
    run = AttentionRows(material, seed, compute)
    with tensorfile.appending(out, run.n_linears) as file:
        file.metadata = {"reads": json.dumps({}), "provenance": json.dumps(material.provenance | {"seed": seed})}
        found = 0

        def take(linear: str, rows: Tensor) -> None:
            nonlocal found
            check_statistic(linear, rows)
            file.put(f"{linear}.rows", rows)
            found += 1

        run.linears(take)
        if not found:
            raise InputError(
                f"{material.checkpoint}: no block has attention with a softmax over keys; use row_moment: end_loss"
            )
