"""GGUF files and exports that cannot be, refused before the method is quantised for them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quant.errors import InputError
from quant.files.tensorfile import opened
from quant.methods.exporting import NoExport, why_no_export
from quant.methods.refusals import mistakes
from tests.tiny import save_byte_tokenizer, save_tokenizer
from tests.unit.methods.studies import NOTHING, completed, found, halve, model_of, of_kind, record_of
from tests.unit.recipe.cases import recast


def of_gguf(checkpoint: Path, linears: dict[str, int], **methods: dict[str, Any]) -> list[str]:
    return found(checkpoint, linears, gguf=completed(**methods))


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
    ({"model_type": "qwen3", "head_dim": 64}, "takes head_dim 128 for qwen3, whatever a GGUF file says, and it has 64"),
    ({"model_type": "qwen2", "head_dim": 32}, "takes head_dim 16 for qwen2, whatever a GGUF file says, and it has 32"),
    (
        {"model_type": "gemma3_text", "head_dim": 128, "query_pre_attn_scalar": 128, "rope_parameters": None},
        "takes query_pre_attn_scalar 256 for gemma3, whatever a GGUF file says, and it has 128",
    ),
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
    assert line.startswith("study.gguf: a: a GGUF export is not known for model_type 'gemma', but for llama, granite, ")
    assert " gemma2" not in line and line.endswith("; leave it out of study.gguf, or FILE=gguf of make")
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
        assert expected in line and "export it for llama.cpp, which reads it; leave it out of study.gguf, or" in line
    (wide / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    (line,) = of_gguf(wide, linears, a=grid)
    assert "hidden_act 'gelu', and llama.cpp has SiLU; leave" in line
    (wide / "config.json").write_text(json.dumps(config))
    save_tokenizer(wide)
    (line,) = of_gguf(wide, linears, a=grid)
    assert "tokenizer with" in line and line.startswith("study.gguf: a: ")
    (line,) = mistakes(wide, record_of(linears, asymmetric="no zero points"), NOTHING | {
        "gguf": completed(a={"group_size": 32})
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
    (entry,) = completed(a=size | method).values()
    with opened(wide / "model.safetensors") as file:
        found = why_no_export(kind, entry, wide, record_of(linears), file.layout())
        library = why_no_export(kind, {"algorithm": "autoawq"}, wide, record_of(linears), file.layout())
    assert found is None if expected is None else found is not None and expected in found.reason
    assert found is None or ("; export" not in found.reason and found.advice.startswith("export "))
    assert (library is None) == (kind == "dense")


def test_what_an_export_advises_is_handed_on() -> None:
    said = "config.json has sliding_window 8, which has no word; export dense, or set it to null"
    assert NoExport.of(InputError(said)) == NoExport(*said.split("; "))
    assert NoExport.of(InputError("has none: export another")) == NoExport("has none", "export another")
    assert NoExport.of(InputError("no such file")) == NoExport("no such file", "export dense, or another method")
