"""Second moments weighted by what an error before the activation does after it (docs/methods.md, PRAQ made exact).

In a gated MLP, down(act(z)·u) with z = gate(x), u = up(x): an error δz_k changes the output by act'(z_k)·u_k·δz_k along
column k of W_down, an error δu_k by act(z_k)·δu_k. In a plain one, down(act(z)), by act'(z_k)·δz_k.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quant.calibration.blocks import Run
from quant.calibration.channels import OF_INPUT
from quant.calibration.material import Material
from quant.calibration.second_moments import add_outer, dots, mirror, to_triangle
from quant.calibration.statistics import activation_of, real_rows
from quant.data.tokens import Batch
from quant.errors import InputError
from quant.files import tensorfile
from quant.files.artifacts import read_json
from quant.models.structure.architectures import ARCHITECTURES, Architecture, architecture_of
from quant.runtime.compute import Compute


def derivative(activation: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """act'(z), elementwise."""
    with torch.enable_grad():
        z = z.detach().clone().requires_grad_()
        return torch.autograd.grad(activation(z).sum(), z)[0]


def sensitivities(z: Tensor, u: Tensor | None, activation: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Squared local Jacobians [n, intermediate] of the MLP's input linears: gate and up, or up alone in a plain MLP."""
    if u is None:
        return {"up": derivative(activation, z).square_()}
    return {"gate": (derivative(activation, z) * u).square_(), "up": activation(z).square()}


class WeightedSums:
    """E_ω[xxᵀ], E_ω|x|, E_ω[x²] and E_ω[x], with E_ω[f] = Σ ω f / Σ ω over rows of x [n, in] with weights ω [n]; and
    the mean of squared Jacobians [out]."""

    def __init__(self, n_in: int, n_out: int, device: str) -> None:
        self.outer = torch.zeros(n_in, n_in, device=device)
        self.sums = torch.zeros(3, n_in, dtype=torch.float64, device=device)
        self.weight = torch.zeros((), dtype=torch.float64, device=device)
        self.squares = torch.zeros(n_out, dtype=torch.float64, device=device)
        self.count = 0

    def add(self, x: Tensor, omega: Tensor, squares: Tensor | None = None) -> None:
        add_outer(self.outer, x * omega.sqrt()[:, None])
        weighted = x * omega[:, None]
        self.sums[0] += weighted.abs().sum(0)
        self.sums[1] += dots(weighted, x, 0)
        self.sums[2] += weighted.sum(0)
        self.weight += omega.sum(dtype=torch.float64)
        self.count += len(x)
        if squares is not None:
            self.squares += squares.sum(0)

    def means(self) -> dict[str, Tensor]:
        """moment [in, in] by its triangle, and x_abs, x_sq, x_mean [in]; float32."""
        total = torch.where(self.weight > 0, self.weight, 1.0)  # where no error passes the activation, all are nothing
        channels = (self.sums / total).float().cpu()
        moment = to_triangle(mirror(self.outer).div_(total.float()))
        return {"moment": moment, **dict(zip(OF_INPUT, channels, strict=True))}


class MlpWatch:
    """Notes one batch's tensors at a block's MLP and adds them up once the block's output is known."""

    def __init__(
        self,
        block: nn.Module,
        facts: Architecture,
        activation: Callable[[Tensor], Tensor],
        residual: bool,
        device: str,
    ) -> None:
        mlp = self._mlp = facts.mlp
        self._activation, self._residual = activation, residual
        self._column = block.get_parameter(f"{mlp.down}.weight").float().square().sum(0)  # ‖W_down[:, k]‖²
        self._batch: Batch  # that runs
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}
        # linears whose error goes straight to the residual
        self._writers = [facts.attention_output, mlp.down] if residual else []
        names = [name for name in dict.fromkeys((mlp.gate, mlp.up, *self._writers)) if name]
        self.sums = {}
        for name in names:
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            self.sums[name] = WeightedSums(linear.in_features, linear.out_features, device)
        self._hooks = [block.get_submodule(name).register_forward_hook(self._hook(name)) for name in names]

    def _hook(self, name: str) -> Any:
        def note(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            self._seen[name] = (real_rows(args[0], self._batch), real_rows(out, self._batch))

        return note

    def before(self, batch: Batch) -> None:
        self._batch, self._seen = batch, {}

    def after(self, hidden: Tensor) -> None:
        """hidden: the block's output, the residual that its linears' errors end in."""
        inverse = torch.ones((), device=hidden.device)
        if self._residual:
            square = real_rows(hidden, self._batch).square().mean(1)
            inverse = 1 / square.clamp_(min=torch.finfo(square.dtype).smallest_normal)
        mlp = self._mlp
        x, up = self._seen[mlp.up]
        if mlp.gate is None:
            squares = {mlp.up: sensitivities(up, None, self._activation)["up"]}
        elif mlp.gate == mlp.up:
            z, u = up.chunk(2, dim=1)
            both = sensitivities(z, u, self._activation)
            squares = {mlp.up: torch.cat([both["gate"], both["up"]], dim=1)}
        else:
            both = sensitivities(self._seen[mlp.gate][1], up, self._activation)
            squares = {mlp.gate: both["gate"], mlp.up: both["up"]}
        for name, square in squares.items():
            square *= self._column.repeat(square.shape[1] // len(self._column))
            self.sums[name].add(x, square.mean(1) * inverse, square)
        for name in self._writers:
            self.sums[name].add(self._seen[name][0], inverse)

    def results(self, prefix: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, sums in self.sums.items():
            found |= {f"{prefix}.{name}.{key}": value for key, value in sums.means().items()}
            if name not in self._writers:
                found[f"{prefix}.{name}.row_weight"] = (sums.squares / sums.count).float().cpu()
        return found

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def collect_jacobian(material: Material, out: str, residual: bool, compute: Compute) -> None:
    """Writes {linear}.moment, .x_abs, .x_sq, .x_mean and .row_weight of the MLP's input linears; with residual also the
    means of the linears that write to the residual, all divided by the residual's mean square at each token."""
    config = read_json(material.checkpoint / "config.json")
    facts = architecture_of(config, "moment: jacobian", ARCHITECTURES, "use moment: plain for this model")
    run = Run(material.checkpoint, material.tokens.sequences, *compute, progress="jacobian")
    activation = activation_of(run.model)
    made = material.provenance | {"residual": residual}
    with tensorfile.appending(out, run.n_linears) as file:
        file.metadata = {"reads": json.dumps({}), "provenance": json.dumps(made)}
        for _, prefix, block, advance in run.each():
            watch = MlpWatch(block, facts, activation, residual, compute.device)
            advance(watch.before, watch.after)
            watch.close()
            for name, value in watch.results(prefix).items():
                if not torch.isfinite(value).all():
                    raise InputError(
                        f"{name}: weighs every token by nothing, or overflows; use moment: plain for this model"
                    )
                file.put(name, value)
