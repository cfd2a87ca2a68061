"""AWQ's score of an output channel."""

from torch import Tensor

from quant.calibration.channels import Channels


def awq(w: Tensor, channels: Channels) -> Tensor:
    """E|z_k|. [out]"""
    return channels.z_abs
