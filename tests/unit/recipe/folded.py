"""Models whose scales fold into the operation before, of every known architecture, with their statistics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from quant.calibration.material import Material
from quant.calibration.reader import Statistics
from quant.calibration.statistics import collect
from quant.data.tokens import Tokens, fingerprint
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.models.structure.linears import all_linears, skeleton
from quant.recipe.recipe import Recipe
from quant.runtime.compute import Compute
from tests.unit.calibration.architectures import COMMON, saved
from tests.unit.recipe.cases import PATTERNS, PLAIN

TWO = COMMON | {"num_hidden_layers": 2}
HEADS = TWO | {"head_dim": 8}
GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0, "attention_multiplier": 0.3}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", TWO),
    "llama_mha": ("LlamaConfig", TWO | {"num_key_value_heads": 4}),
    "llama_mqa": ("LlamaConfig", TWO | {"num_key_value_heads": 1}),
    "llama_bias": ("LlamaConfig", TWO | {"attention_bias": True, "mlp_bias": True}),
    "llama_head_dim": ("LlamaConfig", TWO | {"head_dim": 16}),
    "granite": ("GraniteConfig", TWO | GRANITE),
    "qwen2": ("Qwen2Config", TWO),
    "qwen3": ("Qwen3Config", HEADS),
    "mistral": ("MistralConfig", HEADS),
    "phi3": ("Phi3Config", TWO),
    "phi3_mha": ("Phi3Config", TWO | {"num_key_value_heads": 4}),
    "gemma": ("GemmaConfig", HEADS),
    "gemma2": ("Gemma2Config", HEADS),
    "gemma3_text": ("Gemma3TextConfig", HEADS),
}
MADE = {"model_fingerprint": "m"}


class Case(NamedTuple):
    """A model, its checkpoint, its linears, and paths of its statistics."""

    model: nn.Module
    path: Path
    linears: dict[str, int]
    paths: dict[str, str]

    def run(self, target: Path, **changes: Any) -> dict[str, Any]:
        chosen = Recipe.of(PLAIN | {"salience": "l2", "scope": "shared", "n_grid": 4} | changes)
        statistics, folds = Statistics(self.paths, "m", PATTERNS), folds_of(target)
        return quantize_checkpoint(
            Source(self.path, self.linears), Output(target, folds), statistics, chosen, "cpu", MADE
        )

    def logits(self, target: Path) -> tuple[Tensor, Tensor]:
        """The original's and the checkpoint's."""
        from transformers import AutoModelForCausalLM

        ids = torch.randint(3, 256, (2, 20), generator=torch.Generator().manual_seed(1))
        after = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        with torch.inference_mode():
            return self.model(ids, use_cache=False).logits, after(ids, use_cache=False).logits


def folds_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.folds.safetensors")


def cases(folders: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Each made when it is first asked for."""
    made: dict[str, Case] = {}

    def case_of(name: str) -> Case:
        if name not in made:
            folder = folders.mktemp(name)
            model = saved(*MODELS[name], folder / "model")
            paths = {key: str(folder / f"{key}.safetensors") for key in ("channels", "moments")}
            generator = torch.Generator().manual_seed(0)
            sequences = [torch.randint(3, 256, (length,), generator=generator) for length in (12, 20, 30)]
            tokens = Tokens(sequences, fingerprint(sequences), {})
            material = Material(folder / "model", tokens, {"model_fingerprint": "m"})
            collect(material, *paths.values(), Compute("cpu", torch.float32, 64))
            made[name] = Case(model, folder / "model", all_linears(skeleton(folder / "model")), paths)
        return made[name]

    return case_of
