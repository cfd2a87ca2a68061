"""The AutoRound library for real, a few steps of it, on tiny models, in the environment that the workflow makes."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from quant.files.artifacts import read_json
from tests import tiny
from tests.workflow.environments import environment_of
from tests.workflow.libraries import SHAPE, Made, left_by, loaded, weights_by

pytestmark = pytest.mark.slow
RECIPE = {
    "algorithm": "autoround", "batch": 4, "bits": 4, "extension": False, "group_size": 32, "iterations": 3,
    "n_calib": 8, "rate": 0.02, "seed": 7, "symmetric": False,
}  # fmt: skip
# the weights that the library itself makes of what it packed
DECODE = """
import sys, torch
from pathlib import Path
from auto_round_extension.torch.qlinear_torch import QuantLinear
from auto_round_extension.torch.qlinear_torch_zp import QuantLinear as OfGPTQ
from auto_round.export.export_to_awq.utils import WQLinear_GEMM, dequantize_gemm
from safetensors.torch import load_file, save_file
path, layout, bits, size, out = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
held, found = load_file(path), {}
for name in sorted(key.removesuffix(".qweight") for key in held if key.endswith(".qweight")):
    words, zeros, scales = (held[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales"))
    if layout == "auto_round:auto_awq":
        found[name] = dequantize_gemm(words, zeros, scales, bits, size).T.contiguous()
        continue
    n_in, n_out = words.shape[0] * 32 // bits, words.shape[1]
    linear = (OfGPTQ if layout.endswith("gptq") else QuantLinear)(bits, size, n_in, n_out, False)
    linear.load_state_dict({"qweight": words, "qzeros": zeros, "scales": scales})
    found[name] = linear(torch.eye(n_in, dtype=torch.float16)).T.contiguous()
save_file(found, out)
"""


@pytest.fixture(scope="module")
def environment() -> Path:
    return environment_of("autoround")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, environment: Path) -> Iterator[Made]:
    with loaded(environment, "auto_round", "auto_round.export.export_to_awq.utils") as python:
        yield Made(tmp_path_factory.mktemp("autoround"), environment, python, RECIPE)


@pytest.mark.parametrize(
    ("changes", "layout"),
    [
        ({}, "auto_round:auto_awq"),
        ({"bits": 3}, "auto_round"),
        ({"bits": 2, "symmetric": True, "extension": True}, "auto_round:auto_gptq"),
    ],
)
def test_its_weights_are_ours_of_its_packed_file_to_the_bit(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict, layout: str
) -> None:
    recipe, kept = RECIPE | changes, left_by(monkeypatch, tmp_path)
    record, ours = made.quantise(tmp_path.name, **changes)
    assert tiny.read(kept[0].parent / "result.json")["layout"] == layout
    theirs = weights_by(made.python, DECODE, tmp_path / "theirs.safetensors", kept[0], layout, recipe["bits"], 32)
    original = load_file(made.source / "model.safetensors")
    assert theirs.keys() == made.linears.keys()
    for name, weight in theirs.items():
        assert torch.equal(ours[f"{name}.weight"].half(), weight.half())
        difference = (ours[f"{name}.weight"] - original[f"{name}.weight"]).norm() / original[f"{name}.weight"].norm()
        assert 0 < difference < {4: 0.2, 3: 0.4, 2: 0.9}[recipe["bits"]]
    assert all(
        torch.equal(ours[name], original[name]) for name in original if name.removesuffix(".weight") not in theirs
    )
    per_group = 16 + (0 if recipe["symmetric"] else recipe["bits"])
    assert record["summary"]["bits_per_weight"] == recipe["bits"] + per_group / 32
    assert record["provenance"]["versions"]["autoround"] == "0.16.1"
    assert all(row["milliseconds"] > 0 for row in record["linears"]) and len(record["linears"]) == 14
    moved = max(row["flipped"] for row in record["linears"])
    assert moved > 0  # a few steps of it turn some weights away from their nearest points


def test_the_same_seed_gives_the_same_bits_and_another_others(made: Made) -> None:
    _, first = made.first()
    _, again = made.quantise("again", fresh=True)
    _, other = made.quantise("other", seed=8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_whole_chain_measures_it_like_any_method(tmp_path: Path, environment: Path) -> None:
    """From an environment that the configuration names, as on a machine without a network."""
    folder = tiny.clone(tmp_path / "clone")
    shutil.rmtree(folder / "inputs/model")
    tiny.save_model(folder / "inputs/model", num_key_value_heads=2, **SHAPE)
    overlay = tiny.OVERLAY | {
        "study": {"models": ["tiny"], "datasets": ["heldout"], "methods": ["rtn_g", "autoround"], "tasks": []},
        "methods": {"autoround": {"algorithm": "autoround", "iterations": 3, "batch": 4}},
        "environments": {"autoround": str(environment / "bin/python")},
        "defaults": {"group_size": 32},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(overlay))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        done = tiny.snakemake(folder, "results/summary.csv")
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(folder / "results/summary.csv").set_index("method")
    row = table.loc["autoround"]
    assert row["storage"] == "simulated" and row["quantize_s"] > 0 and row["bits_per_weight"] == 4 + 20 / 32
    assert 0 < row["kl"] < 2 * table.loc["rtn_g", "kl"]
    made = read_json(folder / "results/tiny/autoround/quantize.json")["provenance"]
    assert made["versions"]["autoround's transformers"] and made["calibration_tokens"] == 12 * 32
    held = {path.name for path in (folder / "results/environments/autoround").iterdir()}
    assert held == {"complete", "packages.txt"}
