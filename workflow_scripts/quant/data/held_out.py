"""Whether calibration text leaves a sequence to hold out."""

from collections.abc import Mapping, Sequence

from quant.data.tokens import Tokens
from quant.errors import InputError


def check_held_out(tuned: Mapping[str, Sequence[str]], calibrations: Mapping[str, Tokens]) -> None:
    """Refuses calibration text that is one sequence, where methods tune and hold one out. tuned: methods by calibration
    set; a text may have fewer sequences than n_calib asks for."""
    for name, methods in tuned.items():
        if len(calibrations[name].sequences) == 1:
            raise InputError(
                f"methods {', '.join(methods)}: tune: the calibration text gives one sequence, which leaves none to "
                "hold out; use more calibration text or a smaller calibration.seq_len, or leave tune out"
            )
