"""make's FILE=gguf: the methods that it brings, and what it is refused for."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from quant.errors import InputError
from quant.workflow import make_study
from quant.workflow.gguf_methods import GGUFS, fewest_bits
from tests.unit.workflow.made_studies import EXPERTS, loaded, study

SIZES = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 99,
}
WIDE = SIZES | {"hidden_size": 512, "head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": 8}
HEADS = SIZES | {"hidden_size": 512, "head_dim": 48, "intermediate_size": 1024}


@pytest.mark.parametrize(
    ("config", "bits", "codes"),
    [
        ({}, "3", {"format": "q3_k"}),
        (WIDE, "3", {"format": "q3_k"}),
        (WIDE | {"tie_word_embeddings": True}, "3.44", {"format": "q3_k"}),
        (WIDE, "4.4", {"format": "q3_k"}),
        (WIDE, "4", None),
        ({}, "4", None),
        (SIZES, "4.3", {"format": "iq4_nl", "tensor_types": [{"linears": "down_proj", "format": "q3_k"}]}),
        (SIZES, "4", None),
        ({"model_type": "qwen3_moe", **EXPERTS["mixture"]}, "3", {"format": "q3_k"}),
    ],
)
def test_a_file_of_fewer_than_4_bits(
    here: Path, config: dict[str, Any], bits: str, codes: dict[str, Any] | None
) -> None:
    """By tensors of Q3_K, wherever its blocks of 256 fit."""
    (here / "My Model/config.json").write_text(json.dumps(config))
    found = study(MODEL="My Model", FILE="gguf", BITS=bits)
    names = ([] if codes is None else ["gguf_3bit"]) + list(GGUFS)
    assert loaded(found)["study"]["gguf"] == names == found["study"]["add"]["methods"] == list(found["methods"])
    if codes is not None:
        method = found["methods"]["gguf_3bit"]
        assert {key: method[key] for key in ("format", "tensor_types") if key in method} == codes


def test_the_bits_of_a_file_are_those_of_its_linears() -> None:
    """Of linears by their names, whichever pattern finds them."""
    for sizes in (SIZES, WIDE, HEADS, WIDE | {"tie_word_embeddings": True}):
        bits, codes = fewest_bits(sizes)
        heads = sizes.get("head_dim", 64) * sizes["num_attention_heads"]
        key_value = sizes.get("head_dim", 64) * sizes["num_key_value_heads"]
        hidden, mlp = sizes["hidden_size"], sizes["intermediate_size"]
        shapes = {"q": (heads, hidden), "k": (key_value, hidden), "v": (key_value, hidden), "o": (hidden, heads)}
        shapes |= {"gate": (mlp, hidden), "up": (mlp, hidden), "down": (hidden, mlp)}
        head = 0 if sizes.get("tie_word_embeddings") else hidden * 99
        due = 4.5 * head
        for name, (n_out, n_in) in shapes.items():
            in_q3_k = codes["format"] == "q3_k" or any(
                re.search(each["linears"], f"model.layers.0.self_attn.{name}_proj") for each in codes["tensor_types"]
            )
            assert in_q3_k == (n_in % 256 == 0)
            due += 2 * n_out * n_in * (3 + 7 / 16 if in_q3_k else 4.5)
        assert bits == pytest.approx(due / (head + 2 * sum(n_out * n_in for n_out, n_in in shapes.values())), rel=1e-12)


@pytest.mark.parametrize(
    ("config", "bits", "message"),
    [
        (
            {},
            "2.5",
            r"BITS=2\.5 with FILE=gguf: fewer than the 3\.438 bits a weight of the smallest file, .*; give BITS=3,",
        ),
        ({}, "1", r"BITS=1 with FILE=gguf: fewer than the 3\.438 bits .*; give BITS=3, or SIZE_MB"),
        (
            SIZES,
            "3",
            r"BITS=3 with .* the 4\.236 bits a weight of the smallest .* 256 does not divide, .*; give BITS=4\.3,",
        ),
        (WIDE | {"vocab_size": 9999}, "3", r"BITS=3 with .* the 3\.893 bits .* a head .*; give BITS=3\.9,"),
        (WIDE, "3.44", r"BITS=3\.44 with .* the 3\.445 bits .*; give BITS=3,"),
        (
            HEADS | {"intermediate_size": 1000, "hidden_size": 500},
            "3.4",
            r"BITS=3\.4 with .* the 4\.5 bits .*; give BITS=4,",
        ),
        (
            {"model_type": "gpt2"},
            "",
            r"FILE=gguf is not known for model_type 'gpt2', but for llama, .*; leave FILE=gguf",
        ),
        ({"model_type": "gemma2"}, "4", r"FILE=gguf is not known for model_type 'gemma2'"),
    ],
)
def test_a_file_that_cannot_be_is_refused_at_once(here: Path, config: dict[str, Any], bits: str, message: str) -> None:
    (here / "My Model/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"^{message}") as caught:
        study(MODEL="My Model", FILE="gguf", BITS=bits)
    assert "\n" not in str(caught.value)
    (here / "first").mkdir()  # of an earlier run, whose limits stay
    (here / "first/config.json").write_text(json.dumps(WIDE))
    if bits in ("", "3"):
        make_study.write({"MODEL": "first", "FILE": "gguf", "BITS": bits}, here, apart=True)
        with pytest.raises(InputError, match=message.replace("BITS=3 ", r"BITS=3\.5 ")):
            make_study.write({"MODEL": "My Model"}, here, apart=True)


def test_a_file_for_llama_cpp(here: Path) -> None:
    """Methods whose GGUF file is measured, and one of them is taken; what GGUF has no blocks for is none of them."""
    found = study(MODEL="My Model", FILE="gguf", SIZE_MB="75")
    assert found["choose"] == {"max_bits_per_weight": None, "max_size_mb": 75.0, "storage": "gguf"}
    config = loaded(found)
    assert config["study"]["gguf"] == list(GGUFS) == config["study"]["methods"][-3:]
    assert loaded(study(FILE="gguf", BITS="4"))["choose"]["max_bits_per_weight"] == 4.5
    with pytest.raises(InputError, match=r"^FILE=onnx: must be gguf; leave it out"):
        study(FILE="onnx")
