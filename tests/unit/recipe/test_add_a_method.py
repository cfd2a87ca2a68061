"""docs/add-a-method.md, followed to the letter in a copy of the project: what it adds is a method like any other."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from quant.calibration.material import Material
from quant.calibration.noisy import collect_noisy
from quant.data.tokens import Tokens, fingerprint
from quant.files.tensorfile import opened
from quant.runtime.compute import Compute
from quant.workflow import configuration
from tests.conftest import Captured
from tests.tiny import ROOT
from tests.unit.recipe.cases import LINEARS, PATTERNS

PAGE = (ROOT / "docs/add-a-method.md").read_text(encoding="utf-8")
# one that wants H: each row goes down, to nearest or up, whichever leaves the least d H dᵀ
BY_ERROR = '''"""The best of three."""
import torch
from quant.recipe import grids
from quant.recipe.context import Rounded


def by_error(groups, step, zero, grid, context):
    h = context.moment
    found = [grids.encode(groups + step * shift, step, zero, grid) for shift in (0.0, -0.5, 0.5)]
    d = [grids.from_groups(grids.decode(codes, step, zero) - groups, len(h)) for codes in found]
    best = torch.stack([(each @ h * each).sum(1) for each in d]).argmin(0)
    return Rounded(torch.stack(found)[best, torch.arange(len(best))])
'''
BY_ERROR_ENTRY = '"by_error": Choice("the best of three", (MOMENT,)),'
METHODS: dict[str, dict[str, Any]] = {
    "l2": {"salience": "l2"},
    "peak": {"salience": "peak"},
    "shared": {"salience": "peak", "scope": "shared", "n_grid": 7, "objective": "praq"},
    "noisy": {"salience": "peak", "noise_std": 0.05, "n_noise_samples": 2},
    "sharp": {"salience": "peak", "sharpness": [0.5, 3]},
    "grids": {"salience": "peak", "n_grid": [5, 6]},
    "drawn": {"rounding": "stochastic", "seed": [1, 2]},
    "both": {"salience": "peak", "rounding": "stochastic", "bits": 3},
    "nearest": {},
    "by_error": {"rounding": "by_error"},
    "by_error_peak": {"salience": "peak", "rounding": "by_error", "clip": True},
}
DEFAULTS = {"group_size": 16, "n_grid": 40, "sharpness": 2}
RUN = """
import json, sys
from pathlib import Path
import torch
from quant.calibration.reader import Statistics
from quant.errors import InputError
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.recipe import choices, keys
from quant.recipe.recipe import Recipe
from quant.workflow import configuration, tracking
torch.set_num_threads(1)
given = json.load(sys.stdin)
loaded = configuration.load(given["config"], given["schema"])
found = {"families": loaded["families"], "recipes": loaded["methods"], "files": {}, "code": {}, "alphas": {}}
for name, recipe in loaded["methods"].items():
    found["files"][name] = keys.statistics_files(recipe)
    found["code"][name] = tracking.code_of("quantize.py", modules=choices.modules(recipe))
    target = Path(given["out"], name)
    target.mkdir(parents=True)
    statistics = Statistics({key: given["statistics"][key] for key in found["files"][name]}, "tiny", given["patterns"])
    rows = quantize_checkpoint(
        Source(Path(given["checkpoint"]), given["linears"]), Output(target, target / "folds"), statistics,
        Recipe.of(recipe), "cpu", {},
    )["linears"]
    found["alphas"][name] = [row["alpha"] for row in rows]
for name, entry in given["refused"].items():
    config = given["config"] | {"methods": {"m": entry}, "study": given["config"]["study"] | {"methods": "all"}}
    try:
        configuration.load(config, given["schema"])
    except InputError as error:
        found.setdefault("refused", {})[name] = str(error)
json.dump(found, sys.stdout)
"""
REFUSED = {
    "bounds": {"salience": "peak", "sharpness": 0},
    "no effect": {"salience": "l1", "sharpness": 5},
    "seeds": {"rounding": "by_error", "seed": [1, 2]},
    "unknown": {"rounding": "stochastik"},
}


def follow(root: Path) -> None:
    """Does in the copy at root what the page says, and adds by_error the same way."""
    blocks = re.findall(r"```python\n# (\S+?)(?:, in (\w+))?\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 4
    directory = "workflow_scripts/quant/recipe"
    blocks += [
        (f"{directory}/roundings/by_error.py", "", BY_ERROR),
        (f"{directory}/choices.py", "ROUNDINGS", BY_ERROR_ENTRY),
    ]
    for name, table, text in blocks:
        path = root / name
        if not table:
            path.write_text(text)
            continue
        before, start, after = path.read_text().partition(f"{table}: dict[str, Choice] = {{\n")
        assert start, table
        path.write_text(before + start + text + "\n" + after)


@pytest.fixture(scope="module")
def made(
    tiny_checkpoint: Path,
    captured: Captured,
    statistics: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any]]:
    """The checkpoints of METHODS by the copy, and what its configuration and its jobs say of them."""
    root = tmp_path_factory.mktemp("added")
    shutil.copytree(ROOT / "workflow_scripts", root / "workflow_scripts", ignore=shutil.ignore_patterns("__pycache__"))
    follow(root)
    tokens = Tokens(captured.sequences, fingerprint(captured.sequences), {})
    noise = {"noise_std": 0.05, "n_noise_samples": 2, "seed": 42}
    paths = statistics | {"noisy": str(root / "noisy.safetensors")}
    source = Path(statistics["channels"])
    material = Material(tiny_checkpoint, tokens, {"model_fingerprint": "tiny"})
    collect_noisy(material, source, paths["noisy"], noise, Compute("cpu", torch.float32, 26))
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config |= {"methods": METHODS, "defaults": DEFAULTS, "sensitivity": {"methods": []}}
    config["study"] |= {"methods": "all", "task_methods": "all"}
    given = {
        "config": config,
        "schema": json.loads((ROOT / "rules/schemas/config.schema.json").read_text()),  # the file, as it stood before
        "statistics": paths,
        "patterns": PATTERNS,
        "checkpoint": str(tiny_checkpoint),
        "linears": LINEARS,
        "out": str(root / "out"),
        "refused": REFUSED,
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root / "workflow_scripts")},
    )
    assert done.returncode == 0, done.stderr
    return root / "out", json.loads(done.stdout)


def weights(made: tuple[Path, dict[str, Any]], name: str) -> dict[str, bytes]:
    """Every tensor of a method's checkpoint, as bytes."""
    with opened(made[0] / name / "model.safetensors") as file:
        return {key: file.get(key).numpy().tobytes() for key in file.names}


def test_defaults_and_keys_reach_what_was_added(made: tuple[Path, dict[str, Any]]) -> None:
    recipes = made[1]["recipes"]
    assert (recipes["peak"]["n_grid"], recipes["peak"]["sharpness"]) == (40, 2)
    assert (recipes["shared"]["n_grid"], recipes["shared"]["objective"]) == (7, "praq")
    assert recipes["shared"]["scope"] == "shared" and recipes["noisy"]["noise_std"] == 0.05
    assert recipes["l2"]["n_grid"] == 40 and recipes["nearest"]["n_grid"] == 20, "what is not read is the built-in"
    assert any(round(alpha * 40) % 2 for alpha in made[1]["alphas"]["peak"]), "α goes in steps of 1/40"
    assert {round(alpha * 7, 9) % 1 for alpha in made[1]["alphas"]["shared"]} == {0}


def test_each_reads_the_files_that_it_needs_and_no_others(made: tuple[Path, dict[str, Any]]) -> None:
    files = {name: set(read) for name, read in made[1]["files"].items()}
    assert files["peak"] == files["shared"] == {"channels", "moments"}
    assert files["noisy"] == {"channels", "moments", "noisy"}
    assert files["drawn-seed1"] == set() and files["by_error"] == {"moments"}
    assert files["by_error_peak"] == {"channels", "moments"}


@pytest.mark.parametrize(("family", "key"), [("sharp", "sharpness"), ("grids", "n_grid"), ("drawn", "seed")])
def test_a_sweep_makes_different_weights(made: tuple[Path, dict[str, Any]], family: str, key: str) -> None:
    first, second = made[1]["families"][family]
    assert made[1]["recipes"][first][key] != made[1]["recipes"][second][key]
    assert weights(made, first) != weights(made, second)


def test_what_was_added_does_what_it_says(made: tuple[Path, dict[str, Any]]) -> None:
    assert weights(made, "peak") != weights(made, "l2") != weights(made, "noisy")
    assert weights(made, "by_error") != weights(made, "nearest")
    assert len({repr(sorted(weights(made, name).items())) for name in made[1]["recipes"]}) == len(made[1]["recipes"])


def test_an_addition_makes_no_other_method_anew(made: tuple[Path, dict[str, Any]]) -> None:
    """Jobs of recipes that name nothing new have the code that they had, and the recipe."""
    from quant.recipe import choices
    from quant.workflow import tracking

    config = yaml.safe_load((ROOT / "config.yaml").read_text()) | {"sensitivity": {"methods": []}}
    config |= {"methods": {"l2": METHODS["l2"], "nearest": {}}, "defaults": {"group_size": 16, "n_grid": 40}}
    config["study"] |= {"methods": "all", "task_methods": "all"}
    loaded = configuration.load(config, json.loads((ROOT / "rules/schemas/config.schema.json").read_text()))
    for name in ("l2", "nearest"):
        assert made[1]["recipes"][name] == loaded["methods"][name]
        here = tracking.code_of("quantize.py", modules=choices.modules(made[1]["recipes"][name]))
        assert made[1]["code"][name] == here
    assert made[1]["code"]["peak"] != made[1]["code"]["l2"]


def test_mistakes_are_said(made: tuple[Path, dict[str, Any]]) -> None:
    said = made[1]["refused"]
    assert "sharpness: 0 must be more than 0" in said["bounds"]
    assert "sharpness has no effect with salience: l1; set salience to peak" in said["no effect"]
    assert "m-seed1 and m-seed2 have the same weights" in said["seeds"]
    assert "did you mean stochastic?" in said["unknown"]


def test_the_pages_variant_is_a_sweep() -> None:
    entry = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["methods"] = copy.deepcopy(config["methods"]) | entry
    config["study"]["methods"] = ["l1_3bit"]
    loaded = configuration.load(config, json.loads((ROOT / "rules/schemas/config.schema.json").read_text()))
    assert loaded["study"]["methods"] == ["l1_3bit-group_size32", "l1_3bit-group_size64"]
    assert loaded["methods"]["l1_3bit-group_size32"]["bits"] == 3
