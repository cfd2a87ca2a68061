"""A tiny random model with a tokenizer, made once a test session; nothing is downloaded."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# threads that share cores with other tests wait longer than they work: 15 times as long in products of [2999, 110]
os.environ |= {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")}

import numpy as np
import pytest
import torch

from tests import tiny

torch.set_num_threads(1)


# files that a worker takes long for begin first, the longest before the others: none is left alone with one at the end
LONGEST = [
    *("workflow/test_slurm", "workflow/test_faults", "workflow/test_frontier", "workflow/test_tasks"),
    *("unit/models/sources/test_mutations", "workflow/test_autoround", "workflow/test_staleness_of_code"),
    *("workflow/test_anywhere", "workflow/test_budgets", "workflow/test_autoawq", "workflow/test_recipes"),
    *("workflow/test_staleness", "workflow/test_bad_input", "workflow/test_texts", "workflow/test_llmcompressor"),
    *("workflow/test_command", "workflow/test_study", "workflow/test_gpus", "workflow/test_plan"),
    *("unit/models/conversion/test_matrix", "unit/comparison/test_paired"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {f"tests/{name}.py": index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(LONGEST)))


def perturb(model: torch.nn.Module, seed: int) -> None:
    """Norm weights and biases away from the ones and zeros they start at, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a 2-layer random Llama in float32 and a byte tokenizer (256 ids, no special ones)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,  # pre-activations near 1, where SiLU bends
        attention_bias=True,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).float()
    perturb(model, 1)
    model.save_pretrained(directory)
    tiny.save_byte_tokenizer(directory)
    return directory


class Captured(NamedTuple):
    """Ragged sequences, and each linear's inputs x [n, in] and outputs z [n, out] over all their tokens, float64."""

    sequences: list[torch.Tensor]
    x: dict[str, np.ndarray]
    z: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def captured(tiny_checkpoint: Path) -> Captured:
    """From the whole model in float64, one unpadded sequence at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(2)
    sequences = [torch.randint(0, 256, (length,), generator=generator) for length in (9, 5, 12, 12, 1, 12, 3)]
    x: dict[str, list[torch.Tensor]] = {}
    z: dict[str, list[torch.Tensor]] = {}

    def keep(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            x.setdefault(name, []).append(args[0][0])
            z.setdefault(name, []).append(out[0])

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_hook(keep(name))
    with torch.inference_mode():
        for sequence in sequences:
            model(sequence[None], use_cache=False)
    whole_x, whole_z = ({name: torch.cat(parts).numpy() for name, parts in found.items()} for found in (x, z))
    return Captured(sequences, whole_x, whole_z)


@pytest.fixture(scope="session")
def statistics(tiny_checkpoint: Path, captured: Captured, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of the tiny model's statistics on the captured sequences."""
    from quant.calibration.material import Material
    from quant.calibration.statistics import collect
    from quant.data.tokens import Tokens, fingerprint
    from quant.runtime.compute import Compute

    folder = tmp_path_factory.mktemp("statistics")
    paths = {name: str(folder / f"{name}.safetensors") for name in ("channels", "moments")}
    tokens = Tokens(captured.sequences, fingerprint(captured.sequences), {})
    made = {"model_fingerprint": "tiny"}
    collect(
        Material(tiny_checkpoint, tokens, made), paths["channels"], paths["moments"], Compute("cpu", torch.float32, 26)
    )
    return paths
