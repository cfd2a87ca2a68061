"""Numbers at, just beyond and far beyond the end of a type, and those that are none."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quant.errors import InputError
from quant.files.finite import ends, judged, put_finite
from quant.files.tensorfile import Layout


class Held:
    """A Sink in memory."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.layout: Layout = {"w": (dtype, (3,))}
        self.found: dict[str, Tensor] = {}

    def put(self, name: str, tensor: Tensor) -> None:
        self.found[name] = tensor


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_end_of_a_type(dtype: torch.dtype, sign: float, tmp_path: Path) -> None:
    most, out = torch.finfo(dtype).max, Held(dtype)
    for value in (0.5 * most, most, 1.999 * most):
        put_finite(out, {"w": torch.tensor([0.0, 1.0, sign * value])}, tmp_path)
        assert out.found["w"].dtype == dtype
        assert out.found["w"].float().tolist() == [0.0, 1.0, sign * min(value, most)]
    with pytest.raises(InputError, match=f"w after quantisation holds .* ends at {most:g}"):
        put_finite(out, {"w": torch.tensor([0.0, 1.0, sign * 2.001 * most])}, tmp_path)
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(InputError, match="w after quantisation holds NaN or infinite"):
            put_finite(out, {"w": torch.tensor([value, value, 1.0])}, tmp_path)


def test_whole_numbers_are_written_as_they_are(tmp_path: Path) -> None:
    out = Held(torch.int32)
    put_finite(out, {"w": torch.tensor([-(2**31), 0, 2**31 - 1])}, tmp_path)
    assert out.found["w"].tolist() == [-(2**31), 0, 2**31 - 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_is_said(dtype: torch.dtype) -> None:
    w = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert judged("w", *ends(w).tolist(), "here") == w.abs().max().item()
    w[3, 2] = math.nan
    with pytest.raises(InputError, match="here: w holds NaN or infinite"):
        judged("w", *ends(w).tolist(), "here")
