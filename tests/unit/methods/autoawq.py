"""AutoAWQ's packed layout by a slow loop, and checkpoints and configurations for it."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quant.checkpoints import gemm
from quant.files import tensorfile
from quant.workflow import configuration
from tests.unit.workflow.configurations import DEFAULT, SCHEMA


def slowly_packed(codes: np.ndarray) -> torch.Tensor:
    """Codes [rows, n] → int32 [rows, n/8], one at a time: 0 2 4 6 1 3 5 7 from the lowest four bits up."""
    packed = np.zeros((codes.shape[0], codes.shape[1] // 8), dtype=np.uint32)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            place = [0, 2, 4, 6, 1, 3, 5, 7].index(column % 8)
            packed[row, column // 8] |= np.uint32(int(codes[row, column]) << (4 * place))
    return torch.from_numpy(packed.view(np.int32))


def random_packed(n_in: int, n_out: int, group: int) -> tuple[gemm.Packed, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    codes, zeros = generator.integers(0, 16, (n_in, n_out)), generator.integers(0, 16, (n_in // group, n_out))
    scales = generator.uniform(0.001, 0.1, zeros.shape).astype(np.float16)
    return gemm.Packed(slowly_packed(codes), slowly_packed(zeros), torch.from_numpy(scales)), codes, zeros, scales


def checkpoint(folder: Path, shape: tuple[int, int], kind: str = "llama", name: str = "o_proj") -> tuple[Path, dict]:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    linear = f"model.layers.0.self_attn.{name}"
    tensorfile.save(folder / "model.safetensors", {f"{linear}.weight": torch.zeros(shape)}, {})
    return folder, {linear: 0}


def loaded(entry: Any, methods: Any = None, **defaults: Any) -> dict[str, Any]:
    config = copy.deepcopy(DEFAULT)
    config["methods"]["autoawq"] = entry
    config["defaults"] |= defaults
    config["study"]["methods"] = methods or ["rtn_g", "autoawq"]
    return configuration.load(config, SCHEMA)
