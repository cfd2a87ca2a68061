"""Weights and statistics in, a checkpoint and a record out, one linear at a time; the model is never built."""

import contextlib
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from quant import tensorfile
from quant.errors import InputError
from quant.recipe import LinearStatistics, Recipe, check_finite, quantize_linear
from quant.statistics import channels_of, kind_of

logger = logging.getLogger("quant")


class Statistics:
    """The statistics files that a recipe asks for, opened; a file of another model is refused."""

    def __init__(self, paths: dict[str, str], model_fingerprint: str, patterns: dict[str, list[str]]) -> None:
        self._stack, self._paths, self._patterns = contextlib.ExitStack(), paths, patterns
        self._model = model_fingerprint
        self.files: dict[str, tensorfile.TensorFile] = {}

    def __enter__(self) -> "Statistics":
        for key, path in self._paths.items():
            file = self.files[key] = self._stack.enter_context(tensorfile.opened(path))
            made = file.info("provenance")
            if made["model_fingerprint"] != self._model:
                raise InputError(
                    f"{path}: made from model {made['model_fingerprint']}, not {self._model}; delete it and run again"
                )
        return self

    def __exit__(self, *args: object) -> None:
        self._stack.close()

    @property
    def token_fingerprint(self) -> str | None:
        """Of the calibration tokens; None where the recipe uses none."""
        return next((file.info("provenance")["token_fingerprint"] for file in self.files.values()), None)

    def of(self, linear: str, device: str) -> LinearStatistics:
        """What one linear's recipe reads."""
        channels = moment = None
        if "channels" in self.files:
            file = self.files["channels"]
            channels = channels_of(file, linear, file.info("reads"), kind_of(linear, self._patterns), device)
        if "moments" in self.files:
            file = self.files["moments"]
            moment = file.get(file.info("reads")[linear], device)
        return LinearStatistics(channels, moment)


def quantize_checkpoint(
    source: Path,
    target: Path,
    linears: dict[str, int],
    statistics: Statistics,
    recipe: Recipe,
    device: str,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Writes target/model.safetensors beside copies of the source's other files.

    linears: names and blocks, as convert recorded them. Returns a row per linear and the summary; weights keep the
    source's dtype, since storage is simulated.
    """
    begun = time.perf_counter()
    rows: list[dict[str, Any]] = []
    stored = weights = 0
    with tensorfile.opened(source / "model.safetensors") as model, statistics:
        provenance = provenance | {"token_fingerprint": statistics.token_fingerprint}
        layout = model.layout()
        metadata = {"format": "pt", "provenance": json.dumps(provenance)}
        with tensorfile.writing(target / "model.safetensors", layout, metadata) as out:
            for name in sorted(model.names - {f"{linear}.weight" for linear in linears}):
                out.put(name, model.get(name))
            for linear, layer in tqdm(linears.items(), desc="quantize", unit="linear"):
                started = time.perf_counter()
                w = model.get(f"{linear}.weight", device, torch.float32)
                check_finite(f"{linear}.weight", w, str(source / "model.safetensors"))
                quantized = quantize_linear(w, statistics.of(linear, device), recipe)
                result = quantized.dequantize().to(layout[f"{linear}.weight"][0])
                check_finite(f"{linear}.weight after quantisation", result, str(target))
                out.put(f"{linear}.weight", result)
                stored += quantized.storage_bits
                weights += w.numel()
                milliseconds = 1e3 * (time.perf_counter() - started)
                row = {"linear": linear, "layer": layer, "alpha": quantized.alpha, "objective": quantized.objective}
                rows.append(row | {"milliseconds": milliseconds})
    for file in source.iterdir():
        if file.is_file() and file.name != "model.safetensors":
            shutil.copyfile(file, target / file.name)
    summary = {"bits_per_weight": stored / weights, "quantize_s": time.perf_counter() - begun, "storage": "simulated"}
    return {"linears": rows, "summary": summary, "provenance": provenance}
