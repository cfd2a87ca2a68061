"""What a study may ask of a model, and models that are asked it."""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from quant.methods.refusals import mistakes
from quant.records.model import Embeddings, Linears
from tests.tiny import save_byte_tokenizer, save_model
from tests.unit.workflow.configurations import loaded

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


def completed(**methods: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """As the configuration has them once it is loaded."""
    found: dict[str, dict[str, Any]] = loaded(methods, defaults={"group_size": 16})["methods"]
    return found


def model_of(folder: Path, width: int) -> Path:
    """That a GGUF file could hold."""
    save_model(folder, hidden_size=width, intermediate_size=2 * width)
    save_byte_tokenizer(folder)
    return folder


def halve(tensors: dict[str, Tensor]) -> None:
    tensors |= {name: value.half() for name, value in tensors.items()}
