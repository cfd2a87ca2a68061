"""One linear's per-channel calibration means, as recipes read them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quant.errors import InputError
from quant.files.tensorfile import TensorFile

OF_INPUT = ("x_abs", "x_sq", "x_mean")
OF_OUTPUT = ("z_mean", "z_std", "z_abs", "act_abs")


class Channels(NamedTuple):
    """Calibration means of one linear y = Wx + b, z its output, N tokens.

    x_abs E|x|, x_sq E[x²], x_mean E[x]: [in]. z_mean E z, z_std, z_abs E|z|, act_abs E|SiLU(z)| (the model's
    own activation): [out]. is_mlp: whether an activation follows in the same MLP.
    """

    x_abs: Tensor
    x_sq: Tensor
    x_mean: Tensor
    z_mean: Tensor
    z_std: Tensor
    z_abs: Tensor
    act_abs: Tensor
    is_mlp: bool


def input_of(linear: str, reads: Mapping[str, str]) -> str:
    """The name under which the statistics hold what a linear reads; refuses one that was never called."""
    if linear not in reads:
        raise InputError(
            f"{linear}: no token of the calibration text reached it through a forward call, so nothing is known of its "
            "inputs; leave this model out, or give a text that reaches it"
        )
    return reads[linear]


def lent_in(moments: TensorFile) -> dict[str, str]:
    """By input, the moment that stands for its own in a file of second moments (expert_moments)."""
    return moments.info("lent") if "lent" in moments.metadata else {}


def channels_of(file: TensorFile, name: str, reads: dict[str, str], kind: str, device: str = "cpu") -> Channels:
    """One linear's per-channel statistics."""
    source = input_of(name, reads)
    names = [f"{source}.{key}" for key in OF_INPUT] + [f"{name}.{key}" for key in OF_OUTPUT]
    x_abs, x_sq, x_mean, z_mean, z_std, z_abs, act_abs = on_device([file.get(each) for each in names], device)
    return Channels(x_abs, x_sq, x_mean, z_mean, z_std, z_abs, act_abs, kind == "mlp")


def on_device(vectors: list[Tensor], device: str) -> Sequence[Tensor]:
    """Vectors of one type on a device, by one copy that nothing waits for."""
    if torch.device(device).type == "cpu":
        return vectors
    sizes = [len(each) for each in vectors]
    host = torch.empty(sum(sizes), dtype=vectors[0].dtype, pin_memory=True)
    return torch.cat(vectors, out=host).to(device, non_blocking=True).split(sizes)
