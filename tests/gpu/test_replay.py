"""A recorded step does what the step itself does, to the bit."""

import pytest
import torch
from torch import Tensor, nn

from quant.models.replay import WARM, Replay, recordable, set_rate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trained(records: bool) -> tuple[list[Tensor], bool]:
    """A network's parameters after some steps of Adam, the last batch a shorter one; whether steps were recorded."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 32)).to(device)
    optimizer = torch.optim.Adam(**recordable(device, [list(model.parameters())]), betas=(0.9, 0.95))
    replay = Replay(device)
    replay._records = records

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        (model(x) - y).square().mean().backward()
        optimizer.step()

    for k in range(4 * WARM):
        set_rate(optimizer.param_groups[0], 1e-2 / (1 + k))
        x, y = torch.randn(2, 5 if k == 4 * WARM - 1 else 16, 32, device=device)
        replay(x.shape, step, x, y)
    return [each.detach().cpu() for each in model.parameters()], replay._graph is not None


def test_recorded_steps_are_the_steps() -> None:
    (plain, was_recorded), (recorded, is_recorded) = trained(False), trained(True)
    assert is_recorded and not was_recorded
    assert all(torch.equal(*both) for both in zip(plain, recorded, strict=True))
