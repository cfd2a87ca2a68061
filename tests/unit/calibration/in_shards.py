"""Statistics from several shards."""

from pathlib import Path

import torch

from quant.calibration.expert_moments import WHOLE, Keeping
from quant.calibration.material import Material
from quant.calibration.shards import Part, collect_shard, sum_shards
from quant.data.tokens import Shard
from quant.files import tensorfile
from quant.runtime.compute import Compute

COMPUTE = Compute("cpu", torch.float32, 26)
NAMES = ("channels", "moments", "preactivations")


def in_shards(material: Material, shards: int, folder: Path, keeping: Keeping = WHOLE) -> list[str]:
    """The three files of statistics, from so many shards."""
    parts = [Part(f"{folder}/{i}.sums", f"{folder}/{i}.moments") for i in range(shards)]
    for i, part in enumerate(parts):
        collect_shard(material, Shard(i, shards), part, COMPUTE, keeping)
    paths = [f"{folder}/{name}.safetensors" for name in NAMES]
    sum_shards(material, parts, *paths, COMPUTE, keeping)  # type: ignore[misc]
    return paths


def same(paths: list[str], others: list[str]) -> None:
    """Within the rounding of float32 sums, and of samples in bfloat16."""
    for path, other in zip(paths, others, strict=True):
        with tensorfile.opened(path) as found, tensorfile.opened(other) as expected:
            assert found.names == expected.names
            assert found.metadata.keys() == expected.metadata.keys()
            for key in found.metadata.keys() - {"checksums"}:
                assert found.info(key) == expected.info(key)
            for name in sorted(found.names):
                value, whole = found.get(name), expected.get(name)
                close = {"rtol": 1e-2, "atol": 1e-3} if value.dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
                torch.testing.assert_close(value, whole, **close, msg=lambda said, name=name: f"{name}: {said}")
