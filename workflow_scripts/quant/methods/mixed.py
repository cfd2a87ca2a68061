"""A checkpoint put together from finished ones, each linear from the one that a budget gives it."""

import contextlib
import json
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quant.calibration.vocabulary import known_of, predicted
from quant.checkpoints import ends as two
from quant.checkpoints import packed, stored
from quant.checkpoints.coverage import quantized_share
from quant.errors import InputError
from quant.files import naming, pieces, shards, tensorfile
from quant.files.artifacts import copy, read_json, write_plain_json
from quant.files.tensorfile import put_finite
from quant.files.units import megabytes
from quant.files.weight_names import is_weights
from quant.methods.allocation import Infeasible, allocate, tied_groups
from quant.methods.packing import without_kernels
from quant.recipe.widths import UNTOUCHED
from quant.records.method import MethodRecord, Provenance, Summary

LEFT = "16 bit by its budget"
UNUSED = "its budget leaves every linear in 16 bit"


@dataclass(frozen=True)
class Candidate:
    """A finished method: its folder, its quantize.json, and by linear what it is predicted to cost the model (nats a
    token) and the bits that it takes."""

    method: str
    folder: Path
    record: MethodRecord
    costs: dict[str, float]
    bits: dict[str, int]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"


def sizes_of(
    candidates: Sequence[Candidate | None],
    linears: Sequence[str],
    dense: tensorfile.Layout,
    layouts: Sequence[tensorfile.Layout],
) -> np.ndarray:
    """Bits [2, linears, candidates]: of the weights, and with the file's header. None: a linear as it is."""
    end = sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in dense.values())
    found = np.zeros((2, len(linears), len(candidates)), dtype=np.int64)
    for k, (candidate, layout) in enumerate(zip(candidates, layouts, strict=True)):
        for i, name in enumerate(linears):
            own = {key: layout[key] for key in weight_tensors(name, layout)}
            bits = packed.bits_of(own) if candidate is None else candidate.bits[name]
            found[:, i, k] = bits, bits + 8 * sum(tensorfile.entry_bytes(key, *own[key], end) for key in own)
    return found


def ends_among(
    ends: Sequence[two.End],
    options: int,
    untouched: bool,
    dense: tensorfile.Layout,
    layout: tensorfile.Layout,
    costs: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Costs [ends, options] and sizes [2, ends, options] of embeddings and heads, as sizes_of has those of linears: the
    first candidate's, or, the last option, as they are. They count for the file alone, not for the linears' bits."""
    end = sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in dense.values())
    nats, sizes = np.full((len(ends), options), np.nan), np.zeros((2, len(ends), options), dtype=np.int64)
    for i, each in enumerate(ends):
        nats[i, 0] = costs[i]
        if untouched:
            nats[i, -1] = 0.0
        for k, held in ((0, layout), (options - 1, dense)):
            own = two.kept_in(each, held)
            if k == 0 or untouched:
                sizes[1, i, k] = packed.bits_of(own) + 8 * sum(tensorfile.entry_bytes(n, *own[n], end) for n in own)
    return nats, sizes


def weight_tensors(name: str, held: Container[str]) -> list[str]:
    """The tensors of a linear's weight that a file holds."""
    parts = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point")
    return [key for part in parts if (key := f"{name}.{part}") in held]


def choose(
    costs: np.ndarray,
    sizes: np.ndarray,
    limits: dict[str, float],
    groups: Sequence[Sequence[int]],
    weights: int,
    rest: int,
) -> np.ndarray:
    """The candidate of each linear. costs [linears, candidates]; sizes as sizes_of has them; limits: a budget's, 0 for
    none; groups: linears of one width; weights: of all linears; rest: bits of the file that no choice changes."""
    of_groups = np.stack([costs[list(group)].sum(0) for group in groups])
    sums = np.stack([sizes[:, list(group)].sum(1) for group in groups], axis=1)
    kept = [i for i, key in enumerate(("bits_per_weight", "size_mb")) if limits[key]]
    most = np.array([int(limits["bits_per_weight"] * weights), int(limits["size_mb"] * 8e6) - rest], dtype=np.int64)
    try:
        chosen = allocate(of_groups, sums[kept], most[kept])
    except Infeasible as error:
        if kept[error.limit]:
            found, unit = f"{limits['size_mb']:g}", f"{megabytes((error.least + rest) / 8e6)} MB"
            unit += f", {megabytes(rest / 8e6)} MB of it in tensors that no candidate changes"
        else:
            found, unit = f"{limits['bits_per_weight']:g}", f"{error.least / weights:.3f} bits per weight"
        key = ("bits_per_weight", "size_mb")[kept[error.limit]]
        raise InputError(
            f"budget: {key}: {found}: the smallest choice of its candidates takes {unit}; allow more, or add smaller "
            "candidates"
        ) from None
    of_linears = np.empty(len(costs), dtype=int)
    for group, candidate in zip(groups, chosen, strict=True):
        of_linears[list(group)] = candidate
    return of_linears


def mix_checkpoint(
    source: Path,
    target: Path,
    folds_path: Path,
    linears: dict[str, int],
    candidates: Sequence[Candidate],
    untouched: bool,
    limits: dict[str, float],
    reads: Mapping[str, str],
    provenance: Provenance,
    left: Mapping[str, str],
    ends: Sequence[two.End] = (),
    end_loss: str | None = None,
) -> MethodRecord:
    """Chooses within a budget's limits and writes target/model.safetensors beside copies of the source's other files,
    and the folds. linears, left: as `quantize_checkpoint` has them; untouched: whether a linear may stay as it is;
    reads: by linear, which input it has; ends: embedding and head as every candidate has them quantised, and end_loss
    what it knows of them. Returns a row per linear and the summary."""
    begun = time.perf_counter()
    names = list(linears)
    with contextlib.ExitStack() as files:
        model = files.enter_context(tensorfile.opened(source / "model.safetensors"))
        fingerprint = provenance["model_fingerprint"]
        held = [files.enter_context(stored.opened(each.checkpoint, fingerprint)) for each in candidates]
        folds = [files.enter_context(tensorfile.opened(each.folder / "folds.safetensors")) for each in candidates]
        dense = model.layout()
        options: list[Candidate | None] = [*candidates, *([None] if untouched else [])]
        layouts = [each.file.layout() for each in held] + [dense] * untouched
        costs = np.array([[0.0 if each is None else each.costs[name] for each in options] for name in names])
        metadata = {"format": "pt", "provenance": json.dumps(provenance)}
        metadata |= {key: model.metadata[key] for key in (pieces.KEY, naming.KEY) if key in model.metadata}
        own_keys = {f"{name}.weight" for name in (*names, *(end.name for end in ends))}
        others = {key: dense[key] for key in dense if key not in own_keys}
        sizes = sizes_of(options, names, dense, layouts)
        if ends:
            assert end_loss is not None  # it is every budget's
            known = {key: provenance[key] for key in ("model_fingerprint", "token_fingerprint")}
            damages = [
                predicted(
                    model.get(f"{end.name}.weight", dtype=torch.float32) - held[0].weight(end.name),
                    known_of(end_loss, end.owners, known, "cpu"),
                )
                for end in ends
            ]
            end_costs, own_sizes = ends_among(ends, len(options), untouched, dense, layouts[0], damages)
            costs, sizes = np.concatenate([costs, end_costs]), np.concatenate([sizes, own_sizes], axis=1)
        weights = sum(torch.Size(dense[f"{name}.weight"][1]).numel() for name in names)
        rest = packed.bits_of(others) + 8 * tensorfile.header_bytes(others, metadata)
        at = {name: i for i, name in enumerate(names)}
        groups = [[at[name] for name in group] for group in tied_groups(names, reads)]
        groups += [[len(names) + i] for i in range(len(ends))]
        chosen = choose(costs, sizes, limits, groups, weights, rest)
        taken = [end for end, k in zip(ends, chosen[len(names) :], strict=True) if k == 0]
        of = {name: options[k] for name, k in zip(names, chosen[: len(names)], strict=True)}
        index = {each.method: i for i, each in enumerate(candidates)}
        used = sorted({index[each.method] for each in of.values() if each is not None})
        check_folds([(candidates[i].method, held[i].file) for i in used], names)
        reason = next((why(candidates[i]) for i in used if why(candidates[i])), None if used else UNUSED)
        grids = {} if reason else {name: held[index[each.method]].packed[name] for name, each in of.items() if each}
        layout, config = dense, read_json(source / "config.json")
        if grids:
            grids |= two.heads(taken)
            layout = two.layout_with(packed.layout(dense, grids), dense, taken)
            own_config = packed.quantization_config(grids, dense, left, model.naming)
            config |= {"quantization_config": two.configured(own_config, taken, model.naming)}
        moved: dict[str, Tensor] = {}
        with shards.writing(target / model.path.name, layout, metadata) as out:
            for name, each in of.items():
                i = index[each.method] if each else next(iter(used), 0)
                own = folds_of(name, folds[i]) if used else {}
                moved |= own
                if name in grids:
                    written = {key: held[i].file.get(key) for key in weight_tensors(name, layout)}
                elif each is None:
                    w = model.get(f"{name}.weight", dtype=torch.float32)
                    w = w * own.get(f"{name}.input", torch.ones(1))
                    written = {f"{name}.weight": w * own.get(f"{name}.output", torch.ones(1))[:, None]}
                else:
                    written = {f"{name}.weight": held[i].weight(name)}
                put_finite(out, written, target)
            for end in ends:
                if end not in taken:
                    written = {f"{end.name}.weight": model.get(f"{end.name}.weight")}
                elif grids:
                    written = {key: held[0].file.get(key) for key in two.kept_in(end, layout)}
                else:
                    written = {f"{end.name}.weight": held[0].weight(end.name)}
                put_finite(out, written, target)
            for key in others:
                out.put(key, (held[used[0]].file if used else model).get(key))
    tensorfile.save(folds_path, moved, {"provenance": json.dumps(provenance)})
    for file in source.iterdir():
        if file.is_file() and not is_weights(file) and file.name != "config.json":
            copy(file, target / file.name)
    write_plain_json(target / "config.json", config)
    (target / "README.md").unlink(missing_ok=True)  # the card of what was here before
    picked = np.arange(len(costs)), chosen
    total = int(sizes[0][picked].sum())
    quantized = [name for name, each in of.items() if each is not None] + [end.name for end in taken]
    gone = {name for end in taken for name in end.owners}
    summary: Summary = {
        "bits_per_weight": total / weights,
        "quantize_s": time.perf_counter() - begun,
        "storage": "simulated" if reason else "packed",
        "storage_reason": reason or "",
        "no_kernels": "" if reason else two.unread_by_vllm(taken) or without_kernels(dense, grids) or "",
        **quantized_share(dense, quantized),
        "left": {name: cause for name, cause in left.items() if name not in gone}
        | {name: LEFT for name, each in of.items() if each is None},
    }
    rows = list(rows_of(of, linears, sizes[0][picked][: len(names)]))
    nats = float(costs[picked].sum())
    record: MethodRecord = {"linears": rows, "summary": summary, "provenance": provenance, "predicted_nats": nats}
    if taken:
        record["vocabulary"] = [row for row in candidates[0].record["vocabulary"] if row["module"] in gone]
    return record


def why(candidate: Candidate) -> str:
    """Why a candidate is stored dense, and with it every mix that has a part of it."""
    reason = candidate.record["summary"]["storage_reason"]
    return f"parts of it are {candidate.method}'s: {reason}" if reason else ""


def folds_of(name: str, file: tensorfile.TensorFile) -> dict[str, Tensor]:
    return {key: file.get(key) for key in (f"{name}.input", f"{name}.output") if key in file.names}


def check_folds(files: Sequence[tuple[str, tensorfile.TensorFile]], linears: Sequence[str]) -> None:
    """Refuses checkpoints that differ in more than the weights of these linears, so that their parts do not fit
    together: scales that were folded into norms and biases."""
    if not files:
        return
    own = {key for name in linears for _, file in files for key in weight_tensors(name, file.names)}
    (first, model), *others = files
    for method, file in others:
        for key in sorted((model.names | file.names) - own):
            if key not in model.names or key not in file.names or not torch.equal(model.get(key), file.get(key)):
                raise InputError(
                    f"{first} and {method} fold other scales ({key} differs), so that their linears do not fit "
                    "together; use candidates of one group_size, or leave salience out"
                )


def rows_of(
    of: Mapping[str, Candidate | None], linears: Mapping[str, int], bits: np.ndarray
) -> Iterator[dict[str, Any]]:
    """A row for each linear: its candidate's own, with its grid."""
    known: dict[str, dict[str, dict[str, Any]]] = {}
    for (name, each), size in zip(of.items(), bits.tolist(), strict=True):
        if each is None:
            yield {"linear": name, "layer": linears[name], "storage_bits": size, "bits": UNTOUCHED}
            continue
        if each.method not in known:
            known[each.method] = {row["linear"]: row for row in each.record["linears"]}
        recipe = each.record["provenance"]["recipe"]
        grid = {key: recipe[key] for key in ("bits", "group_size")}
        yield known[each.method][name] | {"storage_bits": size} | grid
