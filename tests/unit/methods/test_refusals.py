"""What a study asks of a model that cannot be: each mistake by its key, all of them at once."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quant.checkpoints.embeddings import spared_bits
from quant.checkpoints.embeddings import wanted as wanted_ends
from quant.errors import InputError
from quant.files.tensorfile import opened
from quant.methods.dense import best_mistakes
from quant.methods.exporting import why_no_export
from quant.methods.packing import why_dense
from quant.methods.refusals import embedding_mistakes, limit_mistakes, mistakes, moment_of_embedding_mistakes
from quant.models.linears import all_linears, skeleton
from quant.recipe.recipe import Recipe
from quant.records.model import Embeddings, Linears
from quant.workflow import configuration
from quant.workflow.demands import demands, refuse
from tests.tiny import save_byte_tokenizer, save_model, save_tokenizer
from tests.unit.recipe.cases import PLAIN, recast
from tests.unit.workflow.configurations import DEFAULT, SCHEMA

NOTHING: dict[str, Any] = {
    "layers": {},
    "seq_len": {},
    "jacobian": [],
    "shared": [],
    "sequential": [],
    "noisy": [],
    "activations": {},
    "gguf": {},
    "library": {},
    "embeddings": {},
    "embedding_moments": [],
    "types": {},
    "budgets": {},
    "limits": {},
    "moments": {"store": "float32", "budget_gb": None},
    "recipes": {},
}
EMBEDDINGS: Embeddings = {"embedding": "model.embed_tokens", "head": "lm_head", "tied": False, "unread": ""}
LIBRARY = {"algorithm": "autoawq", "group_size": 16, "clip": False}
DEFAULTS = {"max_bits_per_weight": 4.5, "max_size_mb": None}


@pytest.fixture(scope="module")
def linears(tiny_checkpoint: Path) -> dict[str, int]:
    return all_linears(skeleton(tiny_checkpoint))


def record_of(linears: dict[str, int], **unpacked: str) -> Linears:
    """convert's; unpacked: as it has it."""
    return {"linears": linears, "left": {}, "unpacked": unpacked, "embeddings": EMBEDDINGS, "experts": []}


def found(checkpoint: Path, linears: dict[str, int], **wanted: Any) -> list[str]:
    return mistakes(checkpoint, record_of(linears), NOTHING | wanted)


def of_kind(checkpoint: Path, tmp_path: Path, kind: str) -> Path:
    """The same checkpoint under another model_type."""
    target = Path(shutil.copytree(checkpoint, tmp_path / kind))
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    return target


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


def test_linears_that_the_facts_do_not_name(tiny_checkpoint: Path, linears: dict[str, int], tmp_path: Path) -> None:
    phi = of_kind(tiny_checkpoint, tmp_path, "phi")
    (jacobian,) = found(phi, linears, jacobian=["a"])
    assert "no linear mlp.fc1" in jacobian
    assert len(found(phi, linears, shared=["a"])) == 1


# ---- limits


def recipes(**methods: Any) -> dict[str, Any]:
    study = {**DEFAULT["study"], "methods": [*methods], "task_methods": "all"}
    entries = {"defaults": {"group_size": 16}, "methods": methods, "study": study}
    config = {**DEFAULT, **entries, "choose": {"max_bits_per_weight": 1}, "sensitivity": {}}
    return demands(configuration.load(config, SCHEMA), DEFAULTS)["recipes"]


def limited(checkpoint: Path, linears: dict[str, int], limits: dict[str, float], **methods: Any) -> list[str]:
    with opened(checkpoint / "model.safetensors") as file:
        return list(limit_mistakes(limits, recipes(**methods), record_of(linears), file.layout()))


def test_a_limit_that_no_packed_method_can_meet(tiny_checkpoint: Path, linears: dict[str, int]) -> None:
    """4 bits in groups of 16 with a float32 step and a zero point of 4 bits: 4 + 36/16 = 6.25, and a shape of 128."""
    methods: dict[str, Any] = {
        "low": {},
        "high": {"bits": 8},
        "dense": {"salience": "l1"},
        "two": {"bits": 2, "keep": "awq"},
    }
    (line,) = limited(tiny_checkpoint, linears, {"max_bits_per_weight": 6.2}, **methods)
    assert line.startswith("choose.max_bits_per_weight: no packed method of the study has at most 6.2 bits per weight")
    assert "the smallest, low, has 6.30" in line
    assert limited(tiny_checkpoint, linears, {"max_bits_per_weight": 6.5}, **methods) == []
    (line,) = limited(tiny_checkpoint, linears, {"max_size_mb": 0.001}, **methods)
    assert (
        line.startswith("choose.max_size_mb: no packed method of the study has at most 0.001 MB") and "0 MB" not in line
    )
    assert limited(tiny_checkpoint, linears, {"max_size_mb": 1, "max_bits_per_weight": 8}, **methods) == []


def test_a_study_without_packed_methods_has_nothing_to_limit(tiny_checkpoint: Path, linears: dict[str, int]) -> None:
    assert limited(tiny_checkpoint, linears, {"max_bits_per_weight": 1}, dense={"salience": "l1"}) == []


def test_a_budget_that_no_candidates_meet(tiny_checkpoint: Path, linears: dict[str, int]) -> None:
    """2 bits in groups of 16 with a float32 step and a zero point: 2 + 32/16, padded to whole words; 3 as 3.2."""
    budgets = {"low": {"bits_per_weight": 4}, "small": {"size_mb": 0.05}, "well": {"bits_per_weight": 5, "size_mb": 1}}
    methods = {name: {"budget": limits, "group_size": 16} for name, limits in budgets.items()}
    config = {
        **DEFAULT,
        "methods": methods,
        "study": DEFAULT["study"] | {"methods": list(methods), "task_methods": "all"},
    }
    config["sensitivity"] = DEFAULT["sensitivity"] | {"methods": []}
    wanted = demands(configuration.load(config, SCHEMA), DEFAULTS)["budgets"]
    low, small = found(tiny_checkpoint, linears, budgets=wanted)
    assert low.startswith("methods.low.budget: bits_per_weight: 4: the smallest choice of its candidates takes 4.")
    assert small.startswith("methods.small.budget: size_mb: 0.05: the smallest choice of its candidates takes 0.1")


# ---- what a configuration demands


def wanted(**changes: Any) -> dict[str, Any]:
    return demands(configuration.load({**DEFAULT, **changes}, SCHEMA), DEFAULTS)


def test_the_default_study_demands_what_it_says() -> None:
    plain = wanted()
    assert plain["layers"] == {"check_mse.layer": ["auto"], "deep_dive.layers": ["auto"]}
    assert plain["seq_len"] == {
        **{"calibration.seq_len": 512, "datasets.python_reference.seq_len": 256, "datasets.docstrings.seq_len": 128}
    }
    assert plain["limits"] == plain["recipes"] == {}, "nobody wrote a limit"
    assert wanted(choose={"max_size_mb": 1})["limits"] == {"max_size_mb": 1}
    assert wanted(choose={"max_size_mb": 1}, study=DEFAULT["study"] | {"gguf": ["simple_int4"]})["limits"] == {}
    assert wanted(check_mse={"layer": None}, deep_dive={"layers": []})["layers"] == {
        **{"check_mse.layer": [], "deep_dive.layers": []}
    }


def test_another_value_of_a_parameter_demands_nothing_new() -> None:
    methods = DEFAULT["methods"]
    assert wanted(methods={**methods, "gw_awq": {"salience": "l1", "n_grid": 7, "bits": 3}}) == wanted()


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


def test_methods_that_need_facts_of_the_model() -> None:
    names = ["praq_jacobian", "awq_clip_gptq_shared", "autoawq"]
    found = wanted(study={**DEFAULT["study"], "methods": names}, choose={"max_size_mb": 100})
    assert found["jacobian"] == ["praq_jacobian"] and found["shared"] == ["awq_clip_gptq_shared"]
    assert found["sequential"] == []
    assert found["library"] == {"autoawq": {"algorithm": "autoawq", "group_size": 64, "clip": True}}
    assert found["limits"] == {"max_size_mb": 100} and found["recipes"].keys() == set(names) - {"autoawq"}


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


# ---- what a job would refuse, before the first


def completed(checkpoint: Path, **methods: dict[str, Any]) -> dict[str, dict[str, Any]]:
    config = {**DEFAULT, "defaults": {"group_size": 16}, "methods": methods, "study": {**DEFAULT["study"]}}
    config["study"] |= {"methods": list(methods), "task_methods": "all"}
    config["sensitivity"] = DEFAULT["sensitivity"] | {"methods": []}
    found: dict[str, dict[str, Any]] = configuration.load(config, SCHEMA)["methods"]
    return found


def test_inputs_that_nobody_would_round_are_refused(tiny_checkpoint: Path, linears: dict[str, int]) -> None:
    """What quantize would say of a result that is dense."""
    methods = completed(
        tiny_checkpoint,
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


def model_of(folder: Path, width: int) -> Path:
    """That a GGUF file could hold."""
    save_model(folder, hidden_size=width, intermediate_size=2 * width)
    save_byte_tokenizer(folder)
    return folder


def halve(tensors: dict[str, Tensor]) -> None:
    tensors |= {name: value.half() for name, value in tensors.items()}


def of_gguf(checkpoint: Path, linears: dict[str, int], **methods: dict[str, Any]) -> list[str]:
    return found(checkpoint, linears, gguf=completed(checkpoint, **methods))


UNREAD: list[tuple[dict[str, Any], str]] = [
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}, "over the scaling of rotary"),
    (
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            }
        },
        "passes over the scaling of rotary positions in a GGUF file",
    ),
    ({"model_type": "qwen3", "head_dim": 64}, "gives a head of qwen3 128 channels, whatever a GGUF file says, and it"),
    ({"model_type": "qwen2", "head_dim": 32}, "a head of qwen2 16 channels, whatever a GGUF file says, and it has 32"),
]  # fmt: skip


def test_a_file_that_cannot_be_is_refused(tiny_checkpoint: Path, linears: dict[str, int], tmp_path: Path) -> None:
    """Of study.gguf: by the grid and the widths, the names, what llama.cpp has words for, and the tokenizer."""
    grid = {"group_size": 32, "symmetric": True}
    single = model_of(tmp_path / "single", 64)
    (line,) = of_gguf(single, linears, a=grid)
    assert "stored in float32, whose steps are no float16, which GGUF's Q4_0 stores; give the model in float16" in line
    wide = recast(single, tmp_path / "wide", halve)
    assert (
        of_gguf(wide, linears, a=grid, b={**grid, "budget": {"bits_per_weight": 5}, "candidates": [{"bits": 8}]}) == []
    )
    (line,) = of_gguf(tiny_checkpoint, linears, a=grid)
    assert line.startswith("study.gguf: a: ") and "inputs of model.layers.0" in line and "group_size 32" in line
    (line,) = of_gguf(of_kind(wide, tmp_path, "gemma"), linears, a=grid)
    assert line == "study.gguf: a: GGUF exports are not known for model_type 'gemma'; leave it out of study.gguf"
    (line,) = of_gguf(of_kind(wide, tmp_path, "granite"), linears, a=grid)
    assert "transformers reads no GGUF file of granite, so that it cannot be measured; export it for llama.cpp" in line

    def biased(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(64).half()

    (line,) = of_gguf(recast(wide, tmp_path / "biased", biased), linears, a=grid)
    assert "transformers passes over model.layers.0.self_attn.q_proj.bias in a GGUF file" in line
    config = json.loads((wide / "config.json").read_text())
    for words, expected in UNREAD:
        (wide / "config.json").write_text(json.dumps(config | words))
        (line,) = of_gguf(wide, linears, a=grid)
        assert expected in line and line.endswith("export it for llama.cpp, which reads it; leave it out of study.gguf")
    (wide / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    (line,) = of_gguf(wide, linears, a=grid)
    assert "hidden_act 'gelu', and llama.cpp has SiLU; leave" in line
    (wide / "config.json").write_text(json.dumps(config))
    save_tokenizer(wide)
    (line,) = of_gguf(wide, linears, a=grid)
    assert "tokenizer with" in line and line.startswith("study.gguf: a: ")
    (line,) = mistakes(wide, record_of(linears, asymmetric="no zero points"), NOTHING | {
        "gguf": completed(wide, a={"group_size": 32})
    })  # fmt: skip
    assert "its weights would be stored dense, and GGUF stores codes: no zero points" in line
    (line,) = of_gguf(wide, linears, a={"format": "q3_k"})
    assert "q3_k has 256 inputs together" in line
    of_k = model_of(tmp_path / "k", 256)
    save_byte_tokenizer(of_k)
    # whose steps are of few bits in every type
    assert of_gguf(of_k, linears, a={"format": "q3_k"}) == []


@pytest.mark.parametrize(
    ("kind", "method", "expected"),
    [
        ("awq", {}, None),
        ("awq", {"bits": 8}, "down_proj has 8 bits, and AutoAWQ's layout holds 4"),
        ("awq", {"group_size": 16}, "has groups of 16 inputs, which AutoAWQ's 32 does not divide"),
        ("awq", {"format": "int8"}, "is in int8, and AutoAWQ's layout holds words of codes"),
        ("awq", {"salience": "l1"}, "stored dense, and AutoAWQ's layout stores codes: scope: linear"),
        (
            "awq",
            {"embeddings": {"bits": 8}},
            "model.embed_tokens is quantised, which AutoAWQ's layout leaves in 16 bit",
        ),
        ("gguf", {}, None),
        ("gguf", {"format": "int8"}, "GGUF has no blocks for"),
        ("dense", {"salience": "l1"}, None),
    ],
)
def test_an_export_that_cannot_be_is_refused(
    tmp_path: Path, linears: dict[str, int], kind: str, method: dict[str, Any], expected: str | None
) -> None:
    """Before the method is quantised for it."""
    wide = recast(model_of(tmp_path / "single", 64), tmp_path / "wide", halve)
    size = {} if "format" in method else {"group_size": 32}
    (entry,) = completed(wide, a=size | method).values()
    with opened(wide / "model.safetensors") as file:
        found = why_no_export(kind, entry, wide, record_of(linears), file.layout())
        library = why_no_export(kind, {"algorithm": "autoawq"}, wide, record_of(linears), file.layout())
    assert found is None if expected is None else expected in str(found)
    assert "; export" not in str(found) and (library is None) == (kind == "dense")


@pytest.mark.parametrize(
    ("unpacked", "methods", "expected"),
    [
        ({}, {"a": {}, "b": {"salience": "l1"}}, []),
        ({}, {"b": {"salience": "l1"}}, ["choose: no method of the study is stored packed .*b: scope: linear"]),
        ({"any": "a Conv1D"}, {"a": {}}, [r"choose: no method .* \(a: a Conv1D\), so that there is none to take"]),
        (
            {"asymmetric": "no zeros; symmetric: true packs them"},
            {"a": {"symmetric": True}, "m": {"budget": {"size_mb": 9}}},
            ["methods.m.budget: size_mb: counts a packed file's bytes, .*: no zeros; symmetric: true packs them"],
        ),
        ({"asymmetric": "no"}, {"a": {"symmetric": True}, "m": {"budget": {"size_mb": 9}, "symmetric": True}}, []),
        ({"asymmetric": "no"}, {"a": {"symmetric": True}, "m": {"budget": {"bits_per_weight": 9}}}, []),
    ],
)  # fmt: skip
def test_a_choice_of_nothing_is_refused(
    tiny_checkpoint: Path, linears: dict[str, int], unpacked: dict[str, str], methods: Any, expected: list[str]
) -> None:
    with opened(tiny_checkpoint / "model.safetensors") as file:
        wanted = {"storage": None, "gguf": [], "recipes": completed(tiny_checkpoint, **methods)}
        record, layout = record_of(linears, **unpacked), file.layout()
        lines = list(best_mistakes(wanted, record, layout))
        assert len(lines) == len(expected) and all(map(re.match, expected, lines))
        with_files = list(best_mistakes(wanted | {"gguf": ["a"]}, record, layout))
        assert [line for line in with_files if line.startswith("choose")] == []
        (line,) = best_mistakes(wanted | {"storage": "gguf"}, record, layout)
        assert line.startswith("choose.storage: gguf: study.gguf names no method")
        assert list(best_mistakes(wanted | {"storage": "gguf", "gguf": ["a"]}, record, layout)) == []


def test_experts_on_several_grids_are_dense(linears: dict[str, int]) -> None:
    """transformers reads all of them on one; another grid beside them is no matter."""
    shapes = {f"model.layers.0.mlp.experts.{i}.{part}_proj": (32, 32) for i in (0, 1) for part in ("up", "down")}
    shapes["model.layers.0.self_attn.q_proj"] = (32, 32)
    unpacked = {"asymmetric": "no zero points"}

    def why(linears: str, **changes: Any) -> str | None:
        grid = {"linears": linears, "bits": 8, "group_size": 32, "symmetric": True, "format": "int"}
        return why_dense(Recipe.of(PLAIN | {"symmetric": True, "tensor_types": [grid]} | changes), shapes, unpacked)

    assert why("q_proj") is None
    assert why("down_proj") == "transformers reads all experts on one grid, and tensor_types gives them several"
    assert why("q_proj", symmetric=False) == "no zero points"
    assert why_dense(Recipe.of(PLAIN), shapes, {}) is None
