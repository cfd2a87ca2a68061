"""Checkpoints put together from others: their own tensors, within their budgets, as every reader takes them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quant.checkpoints import stored
from quant.errors import InputError
from quant.evaluation.perplexity import load_model
from quant.files.tensorfile import opened
from quant.methods.budgets.choice import Budget, Candidate, Given, Swaps, widths_of
from quant.methods.budgets.mixed import UNUSED
from quant.methods.form import LEFT
from quant.methods.source import Source
from tests.unit.methods.budgets.mixtures import READS, mixed
from tests.unit.recipe.cases import LINEARS, MADE, PLAIN, run

FIRST = dict.fromkeys((name for name in LINEARS if ".0." in name), 1.0)  # costs


@pytest.fixture
def candidate(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Candidate]:
    """A finished method; its linears cost 4^-bits each, or what is given."""

    def made(
        method: str, costs: dict[str, float] | None = None, paths: dict | None = None, **changes: Any
    ) -> Candidate:
        folder = tmp_path / method
        record = run(tiny_checkpoint, folder / "checkpoint", paths or {}, **{"group_size": 16} | changes)
        (folder / "checkpoint.folds.safetensors").rename(folder / "folds.safetensors")
        record["provenance"] |= {"recipe": PLAIN | {"group_size": 16} | changes}
        default = dict.fromkeys(LINEARS, 4.0 ** (-record["provenance"]["recipe"]["bits"]))
        bits = {row["linear"]: row["storage_bits"] for row in record["linears"]}
        return Candidate(method, folder, record, default | (costs or {}), bits)

    return made


def numbers(source: Path) -> int:
    return sum(load_file(source / "model.safetensors")[f"{name}.weight"].numel() for name in LINEARS)


def test_a_mix_is_its_candidates_own_tensors(candidate: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Every width at once, read by the library as by us; fused linears have one."""
    dear = dict.fromkeys((name for name in LINEARS if ".0.self_attn" in name), 1.0)
    free = [
        dict.fromkeys((name for name in LINEARS if part in name), 0.0)
        for part in ("1.mlp", "0.mlp", "1.self_attn.o_proj")
    ]
    made = [
        candidate("two", dear | free[0], bits=2),
        candidate("three", dear | free[1], bits=3),
        candidate("four", dear | free[2]),
        candidate("eight", dear, bits=8),
    ]
    record = mixed(tiny_checkpoint, tmp_path / "mix", made, bits_per_weight=12)
    rows, summary = {row["linear"]: row for row in record["linears"]}, record["summary"]
    assert summary["storage"] == "packed" and list(rows) == list(LINEARS)
    assert {row["bits"] for row in rows.values()} == {2, 3, 4, 8, 16}
    before = {
        each.record["provenance"]["recipe"]["bits"]: load_file(each.checkpoint / "model.safetensors") for each in made
    }
    before[16] = load_file(tiny_checkpoint / "model.safetensors")
    held = load_file(tmp_path / "mix/checkpoint/model.safetensors")
    bits = 0
    for name, row in rows.items():
        own = {key: value for key, value in held.items() if key.startswith(f"{name}.weight")}
        theirs = before[row["bits"]]
        assert own.keys() == {key for key in theirs if key.startswith(f"{name}.weight")}
        assert all(torch.equal(value, theirs[key]) for key, value in own.items())
        assert row["storage_bits"] == 8 * sum(value.nbytes for value in own.values())
        bits += row["storage_bits"]
    assert summary["bits_per_weight"] == bits / numbers(tiny_checkpoint) <= 12
    for fused in ("qkv", ("gate", "up")):
        for layer in (0, 1):
            part = "self_attn" if fused == "qkv" else "mlp"
            assert len({rows[f"model.layers.{layer}.{part}.{one}_proj"]["bits"] for one in fused}) == 1
    left = [name for name, row in rows.items() if row["bits"] == 16]
    assert summary["left"] == {"lm_head": "output head"} | dict.fromkeys(left, LEFT)
    assert summary["quantized_share"] < made[0].record["summary"]["quantized_share"]
    model = load_model(tmp_path / "mix/checkpoint", "cpu", torch.float32)
    with stored.opened(tmp_path / "mix/checkpoint", "tiny") as file:
        for name in LINEARS:
            assert torch.equal(model.get_submodule(name).weight, file.weight(name)), name
    config = json.loads((tmp_path / "mix/checkpoint/config.json").read_text())["quantization_config"]
    targets = [target for group in config["config_groups"].values() for target in group["targets"]]
    assert sorted(targets) == sorted(name for name in LINEARS if rows[name]["bits"] < 16)
    assert set(left) <= set(config["ignore"])
    costs = {each.record["provenance"]["recipe"]["bits"]: each.costs for each in made}
    predicted = sum(costs[row["bits"]][name] for name, row in rows.items() if row["bits"] < 16)
    assert record["predicted_nats"] == pytest.approx(predicted)


def test_swaps_move_the_choice_and_stand_in_its_rows(candidate: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Alike by prediction, the MLP is measured to cost three times as much; the rows add up to what was fitted."""
    parts = {part: [name for name in LINEARS if part in name] for part in ("self_attn", "mlp")}
    made = []
    for bits in (2, 8):
        plain, cost = candidate(f"b{bits}", bits=bits), 4.0**-bits
        real = {part: (3 if part == "mlp" else 1) * cost * len(names) for part, names in parts.items()}
        made.append(replace(plain, swaps=Swaps(parts, real, sum(real.values()))))
    source, budget = Source(tiny_checkpoint, LINEARS), Budget({"bits_per_weight": 8.0, "size_mb": 0.0})
    found = widths_of(source, Given(made, False, READS, MADE), budget)
    unmeasured = [replace(each, swaps=None) for each in made]
    plain = widths_of(source, Given(unmeasured, False, READS, MADE), budget)
    taken, without = ({row["linear"]: row["bits"] for row in each["linears"]} for each in (found, plain))
    share = [sum(bits[name] == 8 for name in parts["mlp"]) for bits in (taken, without)]
    assert share[0] > share[1] and found["bits_per_weight"] <= 8
    total = sum((3 if "mlp" in name else 1) * 4.0**-bits for name, bits in taken.items())
    assert sum(row["corrected_nats"] for row in found["linears"]) == pytest.approx(total)
    assert found["predicted_nats"] == pytest.approx(sum(4.0**-bits for bits in taken.values()))
    assert found["swaps"].startswith("1.00 to 3.00") and "swaps" not in plain
    record = mixed(tiny_checkpoint, tmp_path / "mix", made, untouched=False, bits_per_weight=8)
    assert {row["linear"]: row["bits"] for row in record["linears"]} == taken and record["swaps"] == found["swaps"]
    assert [row["corrected_nats"] for row in record["linears"]] == [row["corrected_nats"] for row in found["linears"]]


@pytest.mark.parametrize("spare", [0, 700, 5000])
def test_a_file_takes_no_more_than_its_budget(
    candidate: Any, tiny_checkpoint: Path, tmp_path: Path, spare: int
) -> None:
    rng = np.random.default_rng(spare)
    made = [
        candidate(f"b{bits}", {n: float(rng.uniform(0, 2.0**-bits)) for n in LINEARS}, bits=bits) for bits in (2, 4, 8)
    ]
    least = (made[0].checkpoint / "model.safetensors").stat().st_size + 600  # another provenance and wider offsets
    record = mixed(tiny_checkpoint, tmp_path / "mix", made, size_mb=(least + spare) / 1e6)
    found = (tmp_path / "mix/checkpoint/model.safetensors").stat().st_size
    assert found <= least + spare and record["summary"]["storage"] == "packed"
    if spare:
        assert len({row["bits"] for row in record["linears"]}) > 1 and found > least - 600


def test_folded_scales_go_with_what_stays(
    candidate: Any, tiny_checkpoint: Path, statistics: dict[str, str], tmp_path: Path
) -> None:
    """Candidates that share a fold: a linear left in 16 bit takes it too, so that alone it changes nothing."""
    shared = {"salience": "l2", "scope": "shared", "search_bits": 4, "n_grid": 5, "paths": statistics}
    made = [
        candidate("four", FIRST, **shared),
        candidate("eight", bits=8, **shared),
    ]
    record = mixed(tiny_checkpoint, tmp_path / "mix", made, bits_per_weight=16)
    rows = {row["linear"]: row["bits"] for row in record["linears"]}
    assert 16 in rows.values() and len(set(rows.values())) > 1
    held, source = (load_file(path / "model.safetensors") for path in (tmp_path / "mix/checkpoint", tiny_checkpoint))
    with opened(tmp_path / "mix/folds.safetensors") as folds:
        assert any(name.endswith(".output") for name in folds.names)
        for name, bits in rows.items():
            if bits == 16:
                scale = folds.get(f"{name}.input") if f"{name}.input" in folds.names else torch.ones(1)
                rows_by = folds.get(f"{name}.output") if f"{name}.output" in folds.names else torch.ones(1)
                assert torch.equal(held[f"{name}.weight"], source[f"{name}.weight"] * scale * rows_by[:, None])


def test_candidates_that_fold_other_scales_are_refused(
    candidate: Any, tiny_checkpoint: Path, statistics: dict[str, str], tmp_path: Path
) -> None:
    made = [candidate("plain", FIRST),
            candidate("folds", bits=8, salience="l2", scope="shared", n_grid=5, paths=statistics)]  # fmt: skip
    with pytest.raises(InputError, match=r"plain and folds fold other scales .*layernorm\.weight differs") as caught:
        mixed(tiny_checkpoint, tmp_path / "mix", made, untouched=False, bits_per_weight=9)
    assert "\n" not in str(caught.value) and not (tmp_path / "mix/checkpoint/model.safetensors").exists()


def test_parts_that_are_stored_dense_make_it_dense(candidate: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    made = [candidate("noisy", noise_injection=0.1), candidate("eight", bits=8)]
    record = mixed(tiny_checkpoint, tmp_path / "mix", made, untouched=False, bits_per_weight=8)
    assert record["summary"]["storage"] == "simulated"
    assert record["summary"]["storage_reason"].startswith("parts of it are noisy's: noise_injection")
    held = load_file(tmp_path / "mix/checkpoint/model.safetensors")
    for row in record["linears"]:
        each = made[row["bits"] == 8]
        with stored.opened(each.checkpoint) as file:
            assert torch.equal(held[f"{row['linear']}.weight"], file.weight(row["linear"]))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"bits_per_weight": 3}, r"budget: bits_per_weight: 3: the smallest choice .* takes 6\.\d+ bits per weight"),
        ({"size_mb": 0.01}, r"budget: size_mb: 0\.01: the smallest choice .* MB, .* MB of it in tensors that no"),
        ({"bits_per_weight": 9, "size_mb": 0.01}, "size_mb"),
    ],
)
def test_a_budget_that_cannot_be_met(
    candidate: Any, tiny_checkpoint: Path, tmp_path: Path, limits: Any, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        mixed(tiny_checkpoint, tmp_path / "mix", [candidate("four"), candidate("eight", bits=8)], **limits)
    assert "\n" not in str(caught.value)


def test_a_budget_that_all_fits_into_leaves_everything(candidate: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    record = mixed(tiny_checkpoint, tmp_path / "mix", [candidate("four")], size_mb=10)
    assert (record["summary"]["storage"], record["summary"]["storage_reason"]) == ("simulated", UNUSED)
    held, source = (load_file(path / "model.safetensors") for path in (tmp_path / "mix/checkpoint", tiny_checkpoint))
    assert held.keys() == source.keys() and all(torch.equal(held[key], source[key]) for key in held)
    assert record["summary"]["quantized_share"] == 0 and record["predicted_nats"] == 0
