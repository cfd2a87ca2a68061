"""Tensors that a file holds for a while."""

from pathlib import Path

import pytest
import torch

from quant.files.artifacts import NO_ROOM
from quant.files.spool import Spool, room


def test_what_is_kept_is_the_same_and_mapped(tmp_path: Path) -> None:
    spool, generator = Spool(tmp_path), torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator).to(dtype) for shape, dtype in (
        ((3, 5), torch.float32), ((7,), torch.bfloat16), ((), torch.float16), ((0, 4), torch.float32))]  # fmt: skip
    drawn += [torch.arange(12).view(3, 4).T, torch.tensor([True, False, True])]
    kept = [spool.keep(each) for each in drawn]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(drawn, kept, strict=True))
    assert spool.keep(kept[0][1:]).data_ptr() == kept[0][1:].data_ptr()  # what is there stays there
    kept[0].fill_(2)
    assert list(tmp_path.iterdir()) == [] and drawn[0].ne(2).any()
    del spool
    assert torch.equal(kept[1], drawn[1]) and kept[0].eq(2).all()


def test_room_that_the_disk_has_not_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Else a page that is written to ends the process by SIGBUS, which says nothing."""
    with pytest.raises(OSError) as caught:
        room(tmp_path, 2**60)
    assert caught.value.errno in NO_ROOM
    found = room(tmp_path, 80)
    assert found.eq(0).all() and found.shape == (80,) and list(tmp_path.iterdir()) == []
    found.view(torch.float32).copy_(torch.arange(20))
    assert torch.equal(found.view(torch.float32), torch.arange(20.0))
