"""AWQ's salience."""

from torch import Tensor

from quant.calibration.channels import Channels


def l1(w: Tensor, channels: Channels) -> Tensor:
    """E|x_j| (AWQ). [in]"""
    return channels.x_abs
