"""Checkpoints for the tools that people load them with, each tool in an environment of its own.

`make tools` makes those environments and names their folder in TOOLS; without it these tests are skipped. CHECKPOINTS
names packed checkpoints to try instead of random ones.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quant.checkpoints.export import export
from tests.unit.recipe.cases import recast, run

GIVEN = {path: Path(path) for path in os.environ.get("CHECKPOINTS", "").split()}
GRIDS: dict[str, dict[str, Any]] = {
    f"{bits}-bit {'sym' if symmetric else 'asym'} {size}": {"bits": bits, "symmetric": symmetric, "group_size": size}
    for bits in (4, 8)
    for symmetric in (True, False)
    for size in (32, -1)
} | {
    "4-bit mixed": {
        "bits": 4,
        "symmetric": False,
        "group_size": 32,
        "tensor_types": [
            {"linears": "self_attn.o_proj", "format": "int", "bits": 4, "group_size": -1, "symmetric": True}
        ],
    }
}
PROMPTS = ["The capital of France is", "def add(a, b):", "Once upon a time"]
N_NEW = 16
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "2"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `name` is run for each checkpoint."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", GIVEN or GRIDS)


@pytest.fixture(scope="session")
def python() -> Callable[[str], Path]:
    """The Python of a tool's environment; skips where there is none."""

    def found(tool: str) -> Path:
        if "TOOLS" not in os.environ:
            pytest.skip("`make tools` makes the environments of other tools and runs this")
        path = Path(os.environ["TOOLS"], tool)
        if not (path / "complete").is_file():
            pytest.skip(f"{tool} cannot be installed here: {path} is not complete")
        return path / "bin" / "python"

    return found


@pytest.fixture(scope="session")
def checkpoints(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packed checkpoints by name: those of CHECKPOINTS, or a random float16 Llama on every grid."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if GIVEN:
        return GIVEN
    # sizes that vLLM's product (multiples of 32), its attention (heads of 32) and GGUF's blocks (of 32) take
    shape = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
    rest = {"num_hidden_layers": 2, "vocab_size": 256, "max_position_embeddings": 128, "initializer_range": 0.2}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tools")
    source = recast(tiny_checkpoint, folder / "source", lambda tensors: None)
    config = LlamaConfig(**shape, **rest, bos_token_id=None, eos_token_id=None)
    LlamaForCausalLM(config).half().save_pretrained(source)
    for name, grid in GRIDS.items():
        run(source, folder / name / "checkpoint", {}, **grid)
    return {name: folder / name / "checkpoint" for name in GRIDS}


def exported(checkpoint: Path, folder: Path, kind: str) -> Path:
    """A checkpoint in another format."""
    from quant.checkpoints import stored

    with stored.opened(checkpoint) as held:
        fingerprint = held.file.info("provenance")["model_fingerprint"]
    export(checkpoint, folder / kind, kind, fingerprint)
    return folder / kind


def generate(tool: str, python: Path | str, models: list[Path], dtype: str) -> list[Any]:
    """Of each model, for each of PROMPTS, its token ids and the N_NEW that follow greedily; None: no product for it."""
    job = {"models": list(map(str, models)), "dtype": dtype, "n": N_NEW, "prompts": PROMPTS}
    done = subprocess.run(
        [python, Path(__file__).with_name("generate.py"), tool],
        input=json.dumps(job), capture_output=True, text=True, env=os.environ | OFFLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def expected(model: Path, dtype: str) -> Any:
    """By the transformers of this project's environment."""
    return generate("transformers", sys.executable, [model], dtype)[0]
