"""AutoAWQ's packed layout against a slow loop; what the library is given; mistakes in one line."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.checkpoints import gemm
from quant.errors import InputError
from quant.methods import library
from quant.recipe import keys
from quant.workflow import configuration
from tests.unit.methods.autoawq import checkpoint, loaded, random_packed, slowly_packed
from tests.unit.workflow.configurations import DEFAULT, SCHEMA

AUTOAWQ = {"algorithm": "autoawq"}


@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (3, 64), (128, 24)])
def test_unpacking_inverts_the_slow_loop(rows: int, columns: int) -> None:
    codes = np.random.default_rng(0).integers(0, 16, (rows, columns))
    packed = slowly_packed(codes)
    assert (gemm.unpack_int4(packed).numpy() == codes).all()
    assert (packed < 0).any() or rows == 1  # a code of 8 or more in the highest place sets the sign


@pytest.mark.parametrize(("n_in", "n_out", "group"), [(16, 8, 8), (64, 24, 32), (96, 16, 96)])
def test_dequantised_weights_equal_the_slow_loop(n_in: int, n_out: int, group: int) -> None:
    packed, codes, zeros, scales = random_packed(n_in, n_out, group)
    expected = np.empty((n_out, n_in))
    for i in range(n_in):
        for o in range(n_out):
            expected[o, i] = (codes[i, o] - zeros[i // group, o]) * float(scales[i // group, o])
    np.testing.assert_allclose(packed.unpack().dequantize().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "kind", "name", "expected"),
    [
        ((64, 96), "llama", "o_proj", "its 96 inputs are no multiple of group_size 64, which AutoAWQ needs; write "
                                      "group_size: 32"),
        ((48, 64), "llama", "o_proj", "its 48 outputs are no multiple of 64, which AutoAWQ's clipping needs"),
        ((44, 64), "llama", "k_proj", "its 44 outputs are no multiple of 32, which AutoAWQ's packing needs"),
        ((64, 64), "opt", "o_proj", "not 'opt'; leave autoawq out of study.methods for this model"),
    ],
)  # fmt: skip
def test_shapes_it_cannot_take(tmp_path: Path, shape: tuple[int, int], kind: str, name: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        library.check_model(*checkpoint(tmp_path, shape, kind, name), AUTOAWQ | {"group_size": 64, "clip": True})
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_positions_that_differ_by_layer_are_refused(tmp_path: Path) -> None:
    folder, linears = checkpoint(tmp_path, (64, 64))
    config = {"model_type": "llama", "rope_parameters": {"full_attention": {"rope_theta": 1e6}}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r": its rope_parameters differ by layer, .*; leave autoawq out"):
        library.check_model(folder, linears, AUTOAWQ | {"group_size": 64, "clip": True})


def test_shapes_it_takes(tmp_path: Path) -> None:
    library.check_model(*checkpoint(tmp_path, (96, 64), name="k_proj"), AUTOAWQ | {"group_size": 64, "clip": True})
    library.check_model(*checkpoint(tmp_path, (96, 64)), AUTOAWQ | {"group_size": 64, "clip": False})


# ---- its entry in config.yaml


def test_the_entry_is_completed_with_what_it_knows() -> None:
    config = loaded({"algorithm": "autoawq"}, group_size=32, n_grid=7)
    recipe = config["methods"]["autoawq"]
    assert recipe == {
        "algorithm": "autoawq", "bits": 4, "clip": True, "group_size": 32, "n_calib": 64, "seed": 42,
    }  # fmt: skip
    assert list(recipe) == sorted(recipe)
    assert keys.statistics_files(recipe) == {"tokens": "calibration/n64-s42/tokens.safetensors"}


def test_it_is_in_the_default_table_but_not_in_the_default_study() -> None:
    config = configuration.load(copy.deepcopy(DEFAULT), SCHEMA)
    assert config["methods"]["autoawq"]["group_size"] == 64
    assert "autoawq" not in config["study"]["methods"]


def test_a_list_makes_a_family() -> None:
    config = loaded({"algorithm": "autoawq", "group_size": [32, 64]})
    assert config["study"]["methods"] == ["rtn_g", "autoawq-group_size32", "autoawq-group_size64"]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"algorithm": "autoawq", "salience": "l1"}, "methods.autoawq: AutoAWQ has no 'salience'; valid: algorithm, "
                                                     "bits, clip, group_size, n_calib, seed"),
        ({"algorithm": "autoawq", "n_calb": 1}, "methods.autoawq: AutoAWQ has no 'n_calb'; did you mean n_calib?"),
        ({"algorithm": "autoawq", "bits": 3}, "methods.autoawq.bits: 3; valid: 4"),
        ({"algorithm": "autoawq", "group_size": -1}, "methods.autoawq.group_size: -1 must be at least 1"),
        ({"algorithm": "autoawk"}, "methods.autoawq.algorithm: 'autoawk'; did you mean autoawq?"),
        ({"algoritm": "autoawq"}, "methods.autoawq: unknown key 'algoritm'; did you mean algorithm?"),
        ({"algorithm": ["autoawq", "autoawq"]}, "methods.autoawq.algorithm"),
    ],
)  # fmt: skip
def test_what_the_library_has_not_is_refused(entry: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        loaded(entry)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_defaults_that_it_cannot_follow_count_only_where_it_runs() -> None:
    entry = {"algorithm": "autoawq"}
    loaded(entry, ["rtn_g"], bits=3, group_size=-1)
    with pytest.raises(InputError, match=r"methods\.autoawq: AutoAWQ cannot do bits: 3, which defaults give it"):
        loaded(entry, bits=3)
    with pytest.raises(InputError, match=r"methods\.autoawq: AutoAWQ cannot do group_size: -1"):
        loaded(entry, group_size=-1)
