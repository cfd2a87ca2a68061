"""Shapes of linears, and what is said of one that does not suit a library: for quant.methods.libraries."""

from quant.errors import InputError

Shapes = dict[str, tuple[int, ...]]  # [out, in] by linear


def no_multiple(name: str, found: str, multiple: int, needing: str, method: str) -> InputError:
    """That a linear's size does not suit a library; needing: which part of it."""
    return InputError(
        f"{name}: its {found} are no multiple of {multiple}, which {needing} needs; leave {method} out of "
        "study.methods for this model"
    )
