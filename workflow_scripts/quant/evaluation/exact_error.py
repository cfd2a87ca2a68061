"""The exact layer error of a written checkpoint, on one second moment for all methods, whoever wrote it."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from quant.calibration.channels import input_of, lent_in
from quant.calibration.parts import row_parts
from quant.calibration.second_moments import from_triangle, layer_error
from quant.checkpoints import stored
from quant.files import tensorfile
from quant.models.structure.names import kind_of
from quant.records.method import MethodRecord


def errors(w: Tensor, quantized: Tensor, moment: Tensor) -> dict[str, float]:
    """mse = E‖(W-Ŵ)x‖²/out, and relative_error = E‖(W-Ŵ)x‖² / E‖Wx‖² (0 where both are 0)."""
    error, signal = layer_error(w - quantized, moment), layer_error(w, moment)
    return {"mse": error / w.shape[0], "relative_error": error / signal if signal > 0 else float(error > 0)}


def predicted(difference: Tensor, moments: Tensor, fisher: Tensor) -> float:
    """½·Σ_k mean_t(ω_tk)·tr(D_k H_k D_kᵀ), nats a token: what a change D [out, in] of one linear costs the model, by
    its loss's second derivative. moments [parts, in, in] and fisher [parts] as calibration/end_loss.py has them."""
    rows = row_parts(len(difference), len(moments))
    errors = [layer_error(difference[part], moment) for part, moment in zip(rows, moments, strict=True)]
    return 0.5 * sum(weight * error for weight, error in zip(fisher.tolist(), errors, strict=True))


def measure(
    original: Path,
    checkpoint: Path,
    folds: Path,
    moments: Path,
    record: MethodRecord,
    patterns: dict[str, list[str]],
    device: str,
    end_loss: Path | None = None,
) -> list[dict[str, Any]]:
    """The record's row of each linear with its kind, the calibration tokens that reached it, whether its second moment
    is lent (calibration/expert_moments.py), and its errors.

    checkpoint: the method's directory. folds: scales that a recipe moved into other operations, so that its weights act
    on other inputs and outputs. end_loss: moments weighted by the loss, where there are some, for `predicted`.
    """
    rows = []
    with (
        tensorfile.opened(original) as before,
        stored.opened(checkpoint, record["provenance"]["model_fingerprint"]) as after,
        tensorfile.opened(folds) as moved,
        tensorfile.opened(moments) as second,
        contextlib.nullcontext() if end_loss is None else tensorfile.opened(end_loss) as weighted,
    ):
        unfolded = stored.Unfolded(after, moved)
        reads, seen = second.info("reads"), second.info("seen") if "seen" in second.metadata else None
        lent = lent_in(second)
        for row in tqdm(record["linears"], desc="measure", unit="linear"):
            w = before.get(f"{row['linear']}.weight", device, torch.float32)
            quantized = unfolded.weight(row["linear"], device)
            source = input_of(row["linear"], reads)
            found = errors(w, quantized, from_triangle(second.get(lent.get(source, source), device, torch.float32)))
            if weighted is not None:
                own = [weighted.get(f"{row['linear']}.{key}", device) for key in ("moment", "fisher")]
                whole = torch.stack([from_triangle(each) for each in own[0]])
                found["predicted_nats"] = predicted(w - quantized, whole, own[1])
            counted = {} if seen is None else {"tokens": seen.get(row["linear"], 0), "lent": source in lent}
            rows.append(row | {"kind": kind_of(row["linear"], patterns)} | counted | found)
    return rows
