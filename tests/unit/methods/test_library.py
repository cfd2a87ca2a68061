"""Libraries as methods: AutoRound's packed layouts against slow loops, what each is given, mistakes in one line."""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quant.checkpoints import gptq_layout
from quant.data.tokens import Tokens
from quant.errors import InputError
from quant.files import pieces, tensorfile
from quant.methods import library, library_environment
from quant.methods.libraries import autoround
from quant.methods.source import Source
from quant.recipe import keys
from quant.recipe.grids import Codes, Grid
from quant.recipe.libraries import LIBRARIES, module_of
from tests import tiny
from tests.unit.methods.autoawq import checkpoint, loaded, random_packed

AUTOROUND = {"algorithm": "autoround", "bits": 4, "group_size": 64, "symmetric": False}


# ---- the layouts


def slowly_streamed(codes: np.ndarray, bits: int) -> torch.Tensor:
    """Codes [rows, n] → int32 [rows, n·bits/32], a bit at a time, the lowest first."""
    words = np.zeros((len(codes), codes.shape[1] * bits // 32), dtype=np.uint32)
    for row in range(len(codes)):
        for column in range(codes.shape[1]):
            for bit in range(bits):
                place = column * bits + bit
                words[row, place // 32] |= np.uint32((int(codes[row, column]) >> bit & 1) << place % 32)
    return torch.from_numpy(words.view(np.int32))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("n_out", "n_in", "group"), [(32, 32, 32), (64, 96, 32), (32, 192, 96)])
def test_streamed_codes_equal_the_slow_loop(bits: int, n_out: int, n_in: int, group: int) -> None:
    generator = np.random.default_rng(bits)
    codes = generator.integers(0, 2**bits, (n_out, n_in))
    zeros = generator.integers(0, 2**bits, (n_in // group, n_out))
    scales = generator.uniform(0.001, 0.1, zeros.shape).astype(np.float16)
    packed = slowly_streamed(codes, bits).T.contiguous(), slowly_streamed(zeros, bits), torch.from_numpy(scales)
    for less in (0, 1):
        for symmetric in (False, True):
            found = gptq_layout.unpack(*packed, Grid(bits, group, symmetric), less)
            expected = np.empty((n_out, n_in))
            for o in range(n_out):
                for i in range(n_in):
                    expected[o, i] = (codes[o, i] - zeros[i // group, o] - less) * float(scales[i // group, o])
            np.testing.assert_array_equal(found.dequantize().numpy(), expected.astype(np.float32))
            assert not symmetric or not found.zero.any()


def test_the_layout_is_the_one_that_the_library_named(tmp_path: Path) -> None:
    packed = random_packed(64, 32, 32)[0]
    tensorfile.save(tmp_path / "gemm", {f"a.{name}": part for name, part in packed._asdict().items()}, {})
    recipe = AUTOROUND | {"group_size": 32}
    with tensorfile.opened(tmp_path / "gemm") as file:
        found = autoround.read(file, "a", recipe, {"layout": "auto_round:auto_awq"})
        assert torch.equal(found.dequantize(), packed.unpack().dequantize())
        with pytest.raises(InputError, match="AutoRound wrote the layout 'another', which is not read here"):
            autoround.read(file, "a", recipe, {"layout": "another"})


def test_a_group_of_nothing_has_step_one() -> None:
    step = torch.tensor([0.5, 0.0])[None, :, None]
    codes = Codes(torch.full((1, 2, 4), 3.0), step, torch.full((1, 2, 1), 7.0), Grid(4, 4, False), 8)
    made = library.quantized(codes)
    assert made.step.flatten().tolist() == [0.5, 1] and torch.equal(made.dequantize(), codes.dequantize())


# ---- what a library is given


@pytest.mark.parametrize("name", LIBRARIES)
def test_each_has_its_parts(name: str) -> None:
    """A worker, pinned requirements that hold its version, and a module with what is asked of it."""
    pinned = (tiny.ROOT / f"envs/{name}.txt").read_text().splitlines()
    assert f"{LIBRARIES[name].package}=={LIBRARIES[name].version}" in pinned
    assert all("==" in line for line in pinned if not line.startswith("#"))
    assert (tiny.ROOT / f"envs/{name}.yaml").is_file()
    assert (tiny.ROOT / f"workflow_scripts/{name}_worker.py").is_file()
    adapter = library.adapter_of({"algorithm": name})
    assert adapter.__name__ == module_of(name)
    assert isinstance(adapter, types.ModuleType) and adapter.REASON and adapter.PACKED.startswith(".")
    assert {type(adapter.CHANGES_OTHERS), type(adapter.SPLITS_BATCHES)} == {bool}
    assert adapter.SPLITS_BATCHES or "batch" in LIBRARIES[name].keys


def test_tokens_left_over_are_counted() -> None:
    sequences = [torch.zeros(length, dtype=torch.int64) for length in (5, 3, 4)]
    assert library.used(Tokens(sequences, "", {})) == 10
    assert library.used(Tokens(sequences[:1] * 3, "", {})) == 15


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((48, 64), 64, "its 48 outputs are no multiple of 32, which AutoRound's packing needs; leave autoround out"),
        ((64, 80), 16, "its 80 inputs are no multiple of 32, which AutoRound's packing needs; leave autoround out"),
        ((64, 96), 64, "its 96 inputs are no multiple of group_size 64, which AutoRound needs; write group_size: 32"),
    ],
)
def test_shapes_it_would_leave_alone(tmp_path: Path, shape: tuple[int, int], size: int, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        library.check_model(*checkpoint(tmp_path, shape), AUTOROUND | {"group_size": size})
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_experts_in_one_parameter_are_refused(tmp_path: Path) -> None:
    folder, _ = checkpoint(tmp_path, (64, 64))
    wholes = pieces.Wholes({"experts": (2, 64, 64)}, {f"{i}.weight": pieces.Piece("experts", i) for i in range(2)})
    layout = dict.fromkeys(wholes.pieces, (torch.float32, (64, 64)))
    with tensorfile.writing(folder / "model.safetensors", layout, wholes.metadata()) as out:
        for name in layout:
            out.put(name, torch.zeros(64, 64))
    with pytest.raises(InputError, match=r"its experts \(0 and others\) are parts of one parameter, .*leave autoround"):
        library.check_model(folder, {"0": 0, "1": 0}, AUTOROUND)


def test_other_linears_packed_than_the_workflow_quantises(tmp_path: Path) -> None:
    tensorfile.save(tmp_path / "packed", {"a.qweight": torch.zeros(8, 1, dtype=torch.int32)}, {})
    with tensorfile.opened(tmp_path / "packed") as file, pytest.raises(InputError, match="AutoRound and this workflow "
                                                                       "differ about a: only one"):  # fmt: skip
        library.write_checkpoint(Source(tmp_path, {"b": 0}), file, tmp_path, {}, {"recipe": AUTOROUND}, {})


# ---- its environment


def test_an_environment_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; delete .* and run again to rebuild AutoAWQ's environment"):
        library_environment.interpreter_of(tmp_path, "AutoAWQ")


def test_the_python_that_somebody_named(tmp_path: Path) -> None:
    (tmp_path / "complete").write_text(f"{sys.executable}\n")
    assert library_environment.interpreter_of(tmp_path, "AutoAWQ") == Path(sys.executable)


# ---- its entry in config.yaml


def test_the_entry_is_completed_with_what_it_knows() -> None:
    recipe = loaded({"algorithm": "autoround", "bits": 2}, group_size=32, n_grid=7)["methods"]["autoawq"]
    assert recipe == {
        "algorithm": "autoround", "batch": 8, "bits": 2, "extension": False, "group_size": 32, "iterations": 200,
        "n_calib": 64, "rate": 0.0, "seed": 42, "symmetric": False,
    }  # fmt: skip
    assert list(recipe) == sorted(recipe)
    assert keys.statistics_files(recipe) == {"tokens": "calibration/n64-s42/tokens.safetensors"}
    assert keys.draws(recipe) and not keys.draws(recipe | {"algorithm": "autoawq"})


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"extension": True}, "methods.autoawq: extension has no effect with symmetric: false; set symmetric to true"),
        ({"iterations": 0}, "methods.autoawq.iterations: 0 must be at least 1"),
        ({"bits": 5}, "methods.autoawq.bits: 5; valid: 2, 3, 4, 8"),
        ({"clip": True}, "methods.autoawq: AutoRound has no 'clip'; valid: algorithm, batch, bits, extension, "
                         "group_size, iterations, n_calib, rate, seed, symmetric"),
    ],
)  # fmt: skip
def test_what_the_library_has_not_is_refused(entry: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        loaded({"algorithm": "autoround"} | entry)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_without_effect_makes_nothing_stale() -> None:
    both = [loaded({"algorithm": "autoround", "symmetric": True, "extension": on}) for on in (True, False)]
    assert both[0]["methods"]["autoawq"]["extension"] and not both[1]["methods"]["autoawq"]["extension"]
    assert len(loaded({"algorithm": "autoround", "seed": [1, 2]})["families"]["autoawq"]) == 2  # it draws by the seed
