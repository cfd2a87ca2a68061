"""The second moment as salience."""

from torch import Tensor

from quant.calibration.channels import Channels


def l2(w: Tensor, channels: Channels) -> Tensor:
    """E[x_j²]. [in]"""
    return channels.x_sq
