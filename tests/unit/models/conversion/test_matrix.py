"""Every causal type that transformers knows is right from source to packed checkpoint, or refused in one line."""

from pathlib import Path

import pytest

from tests import matrix

FAST = {  # one of each kind
    "llama": "right",
    "mixtral": "right",  # experts under other names in the file
    "gemma4_text": "right",  # per-layer inputs by position
    "mamba": "right",  # a linear that is read without being called
    "bloom": "right",  # tuples
    "gpt_oss": "right",  # experts whole in the file, transposed, gate and up in turn, with biases
    "llama4_text": "right",  # experts that all see every token
    "jetmoe": "right",  # one linear an expert, in attention too
    "gpt2": "right",  # weights the other way round
    "roberta": "refused",
}


@pytest.mark.parametrize("kind", FAST)
def test_one_of_each_kind(kind: str, tmp_path: Path) -> None:
    found = matrix.tried(kind, tmp_path)
    assert found.verdict == FAST[kind], found.words
    assert found.experts == {"mixtral": 24, "gpt_oss": 24, "llama4_text": 24, "jetmoe": 16}.get(kind, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in matrix.kinds() if kind not in FAST])
def test_every_type(kind: str, tmp_path: Path) -> None:
    found = matrix.tried(kind, tmp_path)
    if found.verdict == "not built":
        pytest.skip(found.words)
