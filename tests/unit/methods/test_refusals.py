"""What a study asks of a model that cannot be: each mistake by its key, all of them at once."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from quant.checkpoints.embeddings import spared_bits
from quant.checkpoints.embeddings import wanted as wanted_ends
from quant.errors import InputError
from quant.files.tensorfile import opened
from quant.methods.refusals import embedding_mistakes, mistakes, moment_of_embedding_mistakes
from quant.models.structure.architectures import ARCHITECTURES
from quant.records.model import Embeddings
from quant.workflow.demands import refuse
from tests.unit.methods.studies import EMBEDDINGS, NOTHING, completed, found, of_kind, record_of
from tests.unit.recipe.cases import recast

LIBRARY = {"algorithm": "autoawq", "group_size": 16, "clip": False}


def test_what_the_model_has_is_no_mistake(tiny_checkpoint: Path, linears: dict[str, int]) -> None:
    layers = {"check_mse.layer": ["auto"], "deep_dive.layers": ["auto", 0]}
    wanted = {"seq_len": {"calibration.seq_len": 128}, "jacobian": ["a"], "shared": ["b"], "sequential": ["c"]}
    assert found(tiny_checkpoint, linears, layers=layers, **wanted) == []


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"layers": {"check_mse.layer": [2]}}, "check_mse.layer: 2: the model has layers 0 to 1"),
        ({"layers": {"deep_dive.layers": [0, 5, 28]}}, "deep_dive.layers: 5, 28: the model has layers 0 to 1"),
        ({"layers": {"deep_dive.layers": ["auto", 1]}}, "deep_dive.layers: auto is layer 1 here"),
        ({"seq_len": {"datasets.d.seq_len": 129}}, "datasets.d.seq_len: 129: the model was made for 128 tokens"),
        ({"library": {"lib": LIBRARY | {"group_size": 32}}}, "methods.lib: .* no multiple of group_size 32"),
    ],
)
def test_each_mistake_is_named_by_its_key(
    tiny_checkpoint: Path, linears: dict[str, int], wanted: dict[str, Any], expected: str
) -> None:
    (line,) = found(tiny_checkpoint, linears, **wanted)
    assert re.match(expected, line) and "\n" not in line


def test_an_architecture_without_facts(tiny_checkpoint: Path, linears: dict[str, int], tmp_path: Path) -> None:
    """All in one message."""
    unknown = of_kind(tiny_checkpoint, tmp_path, "unheard_of")
    lines = found(
        unknown, linears, jacobian=["a", "b"], shared=["c"], library={"d": LIBRARY},
        layers={"check_mse.layer": [9]},
    )  # fmt: skip
    assert [line.split(":")[0] for line in lines] == ["check_mse.layer", "methods a, b", "methods c", "methods.d"]
    assert all("unheard_of" in line for line in lines[1:])
    with pytest.raises(InputError) as caught:
        refuse("m", lines)
    text = str(caught.value)
    assert text.startswith("the study asks m for 4 things that cannot be: (1) check_mse.layer: 9") and "(4) " in text
    refuse("m", [])


@pytest.mark.parametrize("kind", ["unheard_of", "opt"])
def test_shared_scales_are_known_for_what_has_groups(
    tiny_checkpoint: Path, linears: dict[str, int], tmp_path: Path, kind: str
) -> None:
    """And what to write in their place is a packed method that every study has."""
    (line,) = found(of_kind(tiny_checkpoint, tmp_path, kind), linears, shared=["awq_clip_gptq_shared"])
    known = re.search(r"not known for model_type '\w+', but for (.*) \(", line)
    assert known is not None and set(known[1].split(", ")) == {
        name for name, each in ARCHITECTURES.items() if each.groups
    }
    assert "name another method in its place in study.methods, such as gptq_clip, or write scope: linear" in line


def test_linears_that_the_facts_do_not_name(tiny_checkpoint: Path, linears: dict[str, int], tmp_path: Path) -> None:
    phi = of_kind(tiny_checkpoint, tmp_path, "phi")
    (jacobian,) = found(phi, linears, jacobian=["a"])
    assert "no linear mlp.fc1" in jacobian
    assert len(found(phi, linears, shared=["a"])) == 1


def test_experts_are_refused_by_name_where_inputs_are_sequential_or_noisy(
    tiny_checkpoint: Path, linears: dict[str, int], tmp_path: Path
) -> None:
    """They read some tokens and not others."""

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".mlp." in name]:
            tensors[name.replace("mlp.", "mlp.experts.0.")] = tensors.pop(name)

    checkpoint = recast(tiny_checkpoint, tmp_path / "experts", rename)
    names = {name.replace("mlp.", "mlp.experts.0."): layer for name, layer in linears.items()}
    (line,) = found(checkpoint, names, sequential=["frontier", "frontier_fast"])
    assert line.startswith("methods frontier, frontier_fast: inputs: sequential: model.layers.0.mlp.experts.0.")
    assert "use inputs: parallel" in line and found(checkpoint, names) == []
    (line,) = found(checkpoint, names, noisy=["a", "b"])
    assert line.startswith("methods a, b: noise_std is not known for mixtures of experts")


def test_a_pattern_of_no_linear_is_said(tiny_checkpoint: Path, linears: dict[str, int]) -> None:
    (line,) = found(tiny_checkpoint, linears, types={"a": ["down_proj", r"down_prj$"], "b": ["q_proj|k_proj"]})
    assert line.startswith(
        r"methods.a.tensor_types: down_prj$ is in no linear's name on this model; they are model.lay"
    )


def test_embeddings_that_cannot_be_are_said(tiny_checkpoint: Path, linears: dict[str, int]) -> None:
    """And those that can make a file so much smaller."""
    entries = {"a": {"bits": 8, "group_size": 36}, "b": {"bits": 8, "group_size": -1}}
    (line,) = found(tiny_checkpoint, linears, embeddings=entries)
    assert line.startswith("methods.a.embeddings: group_size 36 does not divide the 48 channels of model.embed_tokens")
    fixed = {"a": {"bits": 4, "group_size": 32, "format": "iq4_nl"}}
    (line,) = found(tiny_checkpoint, linears, embeddings=fixed)
    assert line.endswith("take format: int")
    assert found(tiny_checkpoint, linears, embedding_moments=["c"]) == []
    with opened(tiny_checkpoint / "model.safetensors") as file:
        layout = file.layout()
        config = json.loads((tiny_checkpoint / "config.json").read_text()) | {"hidden_size": 64}
        (line,) = moment_of_embedding_mistakes(["c", "d"], config, layout, EMBEDDINGS)
        assert line.startswith(
            "methods c, d: embeddings: the rows of model.embed_tokens have 48 channels and the first"
        )
        unread: Embeddings = {**EMBEDDINGS, "unread": "its head is a Conv1D, not a Linear"}
        words = list(embedding_mistakes(entries, layout, unread))
        assert len(words) == 2 and "its head is a Conv1D" in words[0]
        spare = {name: entry | {"needed": False} for name, entry in entries.items()}
        assert not list(embedding_mistakes(spare, layout, unread)) and wanted_ends(spare["b"], unread, layout) == []
        spared = [spared_bits({"embeddings": entry}, EMBEDDINGS, layout) for entry in (entries["b"], None)]
        # 256 rows of 48 from float32: of a byte a code, and packed beside it, a step a row; the shape of the packed one
        assert spared == [2 * 256 * (48 * 24 - 32) - 2 * 64, 0]
        tied: Embeddings = {**EMBEDDINGS, "tied": True}
        assert spared_bits({"embeddings": entries["b"]}, tied, layout) == 256 * (48 * 24 - 2 * 32)


def test_inputs_that_nobody_would_round_are_refused(tiny_checkpoint: Path, linears: dict[str, int]) -> None:
    """What quantize would say of a result that is dense."""
    methods = completed(
        well={"format": "int8", "activations": "dynamic"},
        blocks={"format": "fp8", "group_size": 128, "activations": "dynamic"},
    )
    (line,) = found(tiny_checkpoint, linears, activations=methods)
    assert line.startswith("methods.blocks: activations: dynamic: packed checkpoints have their readers round inputs")
    assert "blocks of 128 by 128 do not divide" in line
    record = record_of(linears, any="transformers cannot load packed linears in X")
    lines = mistakes(tiny_checkpoint, record, NOTHING | {"activations": methods})
    assert len(lines) == 2 and all("cannot load packed linears in X" in line for line in lines)
    one = {"activations": methods, "noisy": ["a"]}
    assert len(mistakes(tiny_checkpoint, record_of(linears), NOTHING | one)) == 1, "noise is known but of experts"
