"""llm-compressor's GPTQ for real, on a tiny model, in the environment that the workflow makes for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.workflow.environments import environment_of
from tests.workflow.libraries import Made, left_by, loaded, weights_by

pytestmark = pytest.mark.slow
RECIPE = {
    "algorithm": "llmcompressor", "act_order": "static", "bits": 4, "damp": 0.01, "group_size": 32, "n_calib": 8,
    "seed": 7, "symmetric": False,
}  # fmt: skip
# the weights that the library itself makes of what it packed
DECODE = """
import sys, torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, dequantize
from safetensors.torch import load_file, save_file
path, bits, size, symmetric, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True", sys.argv[5]
held, found = load_file(path), {}
args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=size)
for name in sorted(key.removesuffix(".weight_packed") for key in held if key.endswith(".weight_packed")):
    shape, scale = torch.Size(held[f"{name}.weight_shape"].tolist()), held[f"{name}.weight_scale"]
    codes = unpack_from_int32(held[f"{name}.weight_packed"], bits, shape)
    zero = held.get(f"{name}.weight_zero_point")
    zero = None if zero is None else unpack_from_int32(zero, bits, scale.shape, packed_dim=0)
    found[name] = dequantize(codes, scale, zero, args)
save_file(found, out)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    environment = environment_of("llmcompressor")
    with loaded(environment, "llmcompressor", "llmcompressor.modifiers.gptq") as python:
        yield Made(tmp_path_factory.mktemp("llmcompressor"), environment, python, RECIPE)


@pytest.mark.parametrize("changes", [{}, {"bits": 8, "symmetric": True, "act_order": "none"}])
def test_its_weights_are_ours_of_its_packed_file_to_the_bit(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict
) -> None:
    recipe, kept = RECIPE | changes, left_by(monkeypatch, tmp_path)
    record, ours = made.quantise(tmp_path.name, **changes)
    arguments = kept[0], recipe["bits"], 32, recipe["symmetric"]
    theirs = weights_by(made.python, DECODE, tmp_path / "theirs.safetensors", *arguments)
    original = load_file(made.source / "model.safetensors")
    assert theirs.keys() == made.linears.keys()
    assert all(torch.equal(ours[f"{name}.weight"], weight.float()) for name, weight in theirs.items())
    assert all(torch.equal(ours[key], original[key]) for key in original if key.removesuffix(".weight") not in theirs)
    per_group = 16 + (0 if recipe["symmetric"] else recipe["bits"])
    assert record["summary"]["bits_per_weight"] == recipe["bits"] + per_group / 32
    assert record["provenance"]["versions"]["llmcompressor"].startswith("0.14.0")
    assert len(record["linears"]) == 14 and all(row["milliseconds"] > 0 for row in record["linears"])
    assert max(row["flipped"] for row in record["linears"]) > 0  # error feedback moves some off their nearest points


def test_it_gives_the_same_bits_again(made: Made) -> None:
    first, again = made.first()[1], made.quantise("again", fresh=True)[1]
    assert all(torch.equal(first[name], again[name]) for name in first)
