"""What a GPU's numbers are judged by: once for many, and all the same."""

import pytest
import torch

from quant.files.waits import judge, together


class Far(torch.Tensor):
    """Numbers as on a GPU."""

    is_cuda = True  # type: ignore[assignment]


def far(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers).as_subclass(Far)


def test_numbers_are_judged_at_the_end_in_their_order() -> None:
    found: list[list[float]] = []
    with together():
        judge(far(1, 2), found.append)
        judge(torch.tensor([3.0]), found.append)  # at once
        with together():
            judge(far(4), found.append)
        judge(far(5), found.append)
        assert found == [[3], [4]]
    assert found == [[3], [4], [1, 2], [5]]
    judge(far(6), found.append)
    assert found[-1] == [6]


def test_nothing_is_judged_of_what_failed() -> None:
    found: list[list[float]] = []

    def left() -> None:
        with together():
            judge(far(1), found.append)
            raise OSError

    with together():
        with pytest.raises(OSError):
            left()
        judge(far(2), found.append)
    assert found == [[2]]
    with pytest.raises(ValueError, match="3"), together():

        def refused(numbers: list[float]) -> None:
            raise ValueError(numbers)

        judge(far(3), refused)
    judge(far(4), found.append)
    assert found == [[2], [4]]
