"""The README's example of a new salience and of a new variant, run as they stand there."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from quant.calibration.channels import Channels
from quant.calibration.reader import LinearStatistics
from quant.recipe import salience
from quant.recipe.linear import quantize_group
from quant.recipe.recipe import Recipe
from quant.workflow import configuration

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_salience_is_one_function_one_entry_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)\n\n\nSALIENCES", README, re.DOTALL)[1]
    names = vars(salience).copy()
    exec(code, names)
    monkeypatch.setitem(salience.SALIENCES, "peak", names["peak"])
    schema = json.loads((ROOT / "rules/schemas/config.schema.json").read_text())
    for part in (schema["$defs"]["recipe"], schema["$defs"]["method"]):
        text = json.dumps(part).replace('"enum": ["none", "l1"', '"enum": ["none", "peak", "l1"')
        part.update(json.loads(text))
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["methods"]["mine"] = {"salience": "peak"}
    recipe = Recipe.of(configuration.load(config, schema)["methods"]["mine"])
    generator = torch.Generator().manual_seed(0)
    w, x = torch.randn(32, 64, generator=generator), torch.randn(500, 64, generator=generator)
    channels = Channels(x.abs().mean(0), x.square().mean(0), x.mean(0), *torch.rand(4, 32, generator=generator), True)
    (result,) = quantize_group([w], [LinearStatistics(channels, x.T @ x / 500)], recipe, generator)
    assert result.alpha is not None and (result.dequantize() - w).abs().max() < w.abs().max()


def test_the_readmes_variant_is_a_sweep() -> None:
    entry = yaml.safe_load(re.search(r"    methods:\n      (l1_3bit: .*?)\n", README)[1])
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["methods"] = copy.deepcopy(config["methods"]) | entry
    config["study"]["methods"] = ["l1_3bit"]
    schema = json.loads((ROOT / "rules/schemas/config.schema.json").read_text())
    loaded = configuration.load(config, schema)
    assert loaded["study"]["methods"] == ["l1_3bit-group_size32", "l1_3bit-group_size64"]
    assert loaded["methods"]["l1_3bit-group_size32"]["bits"] == 3
