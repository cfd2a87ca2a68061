"""Numbers that decide whether a tensor is taken, which a GPU is waited for: of many tensors once."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Judge = Callable[[list[float]], object]
_together: list["Given"] = []  # of each `together` that is open


class Given:
    """What is judged later."""

    def __init__(self) -> None:
        self.numbers, self.judges = list[Tensor](), list[Judge]()


def judge(numbers: Tensor, judged: Judge) -> None:
    """judged(numbers [n]), which refuses them: now, or of a GPU's at the end of `together`."""
    if _together and numbers.is_cuda:
        _together[-1].numbers.append(numbers.double())
        _together[-1].judges.append(judged)
    else:
        judged(numbers.tolist())


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What is judged within is judged at its end, in one wait; nothing is where it fails."""
    given = Given()
    _together.append(given)
    try:
        yield
    finally:
        _together.remove(given)  # which need not be the last, of a generator that was left
    if given.judges:
        found = torch.cat(given.numbers).cpu().split([len(numbers) for numbers in given.numbers])
        for numbers, judged in zip(found, given.judges, strict=True):
            judged(numbers.tolist())
