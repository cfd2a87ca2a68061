"""The end loss's moments on a GPU against the CPU's, and from run to run."""

from pathlib import Path

import pytest
import torch

from quant.calibration.end_loss import collect_end_loss
from quant.calibration.material import Material
from quant.data.tokens import Tokens, fingerprint
from quant.files import tensorfile
from quant.runtime.compute import Compute
from tests.unit.calibration.architectures import COMMON, saved

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("parts", [1, 4])
def test_moments_are_a_cpu_s_and_the_same_every_time(parts: int, tmp_path: Path) -> None:
    saved("LlamaConfig", COMMON, tmp_path)
    generator = torch.Generator().manual_seed(3)
    sequences = [torch.randint(3, 256, (length,), generator=generator) for length in (40, 33, 40, 7)]
    tokens = Tokens(sequences, fingerprint(sequences), {})
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("cpu", "cuda", "again")}
    for name, path in paths.items():
        where = "cpu" if name == "cpu" else "cuda"
        material = Material(tmp_path, tokens, {"model_fingerprint": "m"})
        collect_end_loss(material, str(path), parts, 5, Compute(where, torch.float32, 80))
    assert paths["cuda"].read_bytes() == paths["again"].read_bytes()
    with tensorfile.opened(paths["cpu"]) as here, tensorfile.opened(paths["cuda"]) as there:
        assert here.names == there.names
        for key in here.names:
            expected = here.get(key)
            limit = 1e-3 * expected.abs().max().item()
            torch.testing.assert_close(there.get(key), expected, rtol=1e-2, atol=limit, msg=key)
