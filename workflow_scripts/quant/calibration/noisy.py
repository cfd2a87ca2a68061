"""Robust-PRAQ's statistics: each expectation averaged over draws of x+ε, ε ~ N(0, (noise_std·std X)²).

std X is over the whole input tensor. An output's noise W_k·ε is normal with standard deviation σ‖W_k‖, so it is drawn
directly: each output's expectation is the same, and no second matrix product is needed.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quant.calibration.blocks import Run
from quant.calibration.material import Material
from quant.calibration.statistics import activation_of, token_rows
from quant.calibration.sums import sum_kernels
from quant.data.tokens import Batch
from quant.errors import InputError
from quant.files import tensorfile
from quant.models.structure.experts import routing
from quant.models.structure.linears import linear_names
from quant.runtime.compute import Compute


class Noise:
    """Where draws come from: a generator on the device, or, of what kernels draw by themselves, a seed each time."""

    def __init__(self, seed: int, device: str) -> None:
        self.generator, self._seeds = torch.Generator(device).manual_seed(seed), torch.Generator().manual_seed(seed)

    def seed(self) -> int:
        return int(torch.randint(2**31 - 2**10, (), generator=self._seeds))


class NoisySums:
    """Running sums of |x+ε|, (x+ε)² of an input or |act(z+η)| of an output, over draws and rows."""

    def __init__(self, n: int, sigma: Tensor, draws: int, noise: Noise) -> None:
        """sigma: one, or [n]."""
        self.count, self.sigma, self.draws, self._noise = 0, sigma.expand(n), draws, noise
        self.sums = torch.zeros(2, n, dtype=torch.float64, device=sigma.device)

    def noisy(self, t: Tensor) -> Tensor:
        """float32."""
        drawn = torch.randn(t.shape, generator=self._noise.generator, device=t.device)
        return drawn.mul_(self.sigma).add_(t)

    def add_input(self, x: Tensor) -> None:
        self.count += self.draws * len(x)
        if x.is_cuda and (fused := sum_kernels()) is not None:
            self.sums += fused.noisy_sums(x, self.sigma, self.draws, self._noise.seed(), False)
            return
        for _ in range(self.draws):
            drawn = self.noisy(x)
            self.sums[0] += drawn.abs().sum(0)
            self.sums[1] += drawn.square().sum(0)

    def add_output(self, z: Tensor, activation: Callable[[Tensor], Tensor]) -> None:
        from transformers.activations import SiLUActivation

        self.count += self.draws * len(z)
        if z.is_cuda and isinstance(activation, SiLUActivation) and (fused := sum_kernels()) is not None:
            self.sums += fused.noisy_sums(z, self.sigma, self.draws, self._noise.seed(), True)
            return
        for _ in range(self.draws):
            self.sums[0] += activation(self.noisy(z)).abs_().sum(0)

    def means(self) -> Tensor:
        return (self.sums / self.count).float().cpu()


def input_std(file: tensorfile.TensorFile, source: str) -> float:
    """Standard deviation of a whole input tensor, from its channels' E[x²] and E[x]."""
    square, mean = (file.get(f"{source}.{key}").double().mean() for key in ("x_sq", "x_mean"))
    return (square - mean**2).clamp(min=0).sqrt().item()


class NoisyWatch:
    """Hooks on a block's linears that feed these sums, by linear, with real tokens only."""

    def __init__(
        self,
        block: nn.Module,
        activation: Callable[[Tensor], Tensor],
        inputs: dict[str, NoisySums],
        outputs: dict[str, NoisySums],
    ) -> None:
        self._inputs, self._outputs, self._activation = inputs, outputs, activation
        self._batch: Batch  # that runs
        self._hooks = [block.get_submodule(name).register_forward_hook(self._hook(name)) for name in outputs]

    def observe(self, batch: Batch) -> None:
        self._batch = batch

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(module: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
            if name in self._inputs:
                self._inputs[name].add_input(token_rows(args[0], self._batch))
            self._outputs[name].add_output(token_rows(z, self._batch), self._activation)

        return record

    def close(self) -> dict[str, Tensor]:
        """What they found."""
        for hook in self._hooks:
            hook.remove()
        found: dict[str, Tensor] = {}
        for name, sums in self._inputs.items():
            found |= zip((f"{name}.x_abs", f"{name}.x_sq"), sums.means(), strict=True)
        return found | {f"{name}.act_abs": sums.means()[0] for name, sums in self._outputs.items()}


def collect_noisy(
    material: Material,
    channels_path: Path,
    out: str,
    noise: dict[str, Any],
    compute: Compute,
) -> None:
    """Writes {input}.x_abs, .x_sq, .x_std and {linear}.act_abs; noise = {noise_std, n_noise_samples, seed}."""
    run = Run(material.checkpoint, material.tokens.sequences, *compute, progress="noisy calibration")
    activation = activation_of(run.model)
    source_of_noise, draws = Noise(noise["seed"], compute.device), noise["n_noise_samples"]
    found: dict[str, Tensor] = {}
    with tensorfile.opened(channels_path) as channels:
        reads = channels.info("reads")
        for _, prefix, block, advance in run.each():
            if routing(block):
                raise InputError(
                    f"{prefix}: noise_std is not known for mixtures of experts; leave it out for this model"
                )
            inputs: dict[str, NoisySums] = {}
            outputs: dict[str, NoisySums] = {}
            for name in (name for name in linear_names(block) if f"{prefix}.{name}" in reads):
                full, source = f"{prefix}.{name}", reads[f"{prefix}.{name}"]
                linear = block.get_submodule(name)
                assert isinstance(linear, nn.Linear)
                std = input_std(channels, source)
                sigma = torch.tensor(noise["noise_std"] * std, device=compute.device)
                if source == full:
                    found[f"{source}.x_std"] = torch.tensor([std])
                    inputs[name] = NoisySums(linear.in_features, sigma, draws, source_of_noise)
                output_sigma = sigma * linear.weight.float().norm(dim=1)
                outputs[name] = NoisySums(linear.out_features, output_sigma, draws, source_of_noise)
            watch = NoisyWatch(block, activation, inputs, outputs)
            advance(watch.observe)
            found |= {f"{prefix}.{key}": value for key, value in watch.close().items()}
    metadata = {"reads": json.dumps(reads), "provenance": json.dumps(material.provenance | noise)}
    tensorfile.save(out, {key: value.clone() for key, value in found.items()}, metadata)
