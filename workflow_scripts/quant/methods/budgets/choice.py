"""Which of its candidates each linear gets within a budget's limits."""

import contextlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from quant.calibration.embedding_moments import known_of, predicted
from quant.checkpoints import packed, stored
from quant.checkpoints.around import metadata_of
from quant.checkpoints.embeddings import Embedding, kept_in
from quant.errors import InputError
from quant.files import tensorfile
from quant.files.artifacts import mark, read_json, require
from quant.files.csv_tables import read_table
from quant.files.units import megabytes
from quant.files.weight_names import experts_of
from quant.methods.budgets.allocation import Infeasible, allocate, tied_groups
from quant.methods.budgets.swaps import corrected
from quant.methods.source import Source
from quant.recipe.widths import UNTOUCHED
from quant.records.method import MethodRecord, Provenance

LARGEST = 2.0**62  # bits, which no limit need exceed


class Swaps(NamedTuple):
    """KL, nats a token: of each part of the model by itself, and of the whole; linears: by part."""

    linears: dict[str, list[str]]
    parts: dict[str, float]
    whole: float


@dataclass(frozen=True)
class Candidate:
    """A finished method: its folder, its quantize.json, and by linear what it is predicted to cost the model (nats a
    token) and the bits that it takes. swaps: what its parts by themselves really cost, and the whole model."""

    method: str
    folder: Path
    record: MethodRecord
    costs: dict[str, float]
    bits: dict[str, int]
    swaps: Swaps | None = None

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def is_packed(self) -> bool:
        return self.record["summary"]["storage"] == "packed"


def finished(
    record_path: str, table_path: str, swaps_path: str | None, method: str, recipe: dict, fingerprint: str
) -> Candidate:
    """A finished method; refused where its tables are of another one."""
    record = read_json(record_path)
    require(record_path, record["provenance"], recipe=recipe, model_fingerprint=fingerprint)
    made, table = mark(record["provenance"]), read_table(table_path)
    require(table_path, {"checkpoint": table["checkpoint"].iloc[0]}, checkpoint=made)
    if "predicted_nats" not in table:
        raise InputError(
            f"{table_path}: has no predicted_nats, by which a budget chooses; name the budget's method in "
            "study.methods, whose end loss they come from"
        )
    costs = dict(zip(table["linear"], table["predicted_nats"].astype(float), strict=True))
    bits = dict(zip(table["linear"], table["storage_bits"].astype(int), strict=True))
    swaps = None
    if swaps_path is not None:
        known = read_json(swaps_path)
        require(swaps_path, {"checkpoint": known["provenance"]["checkpoint"]}, checkpoint=made)
        swaps = Swaps(known["linears"], known["parts"], known["whole"])
    return Candidate(method, Path(record_path).parent, record, costs, bits, swaps)


class Given(NamedTuple):
    """What a budget chooses with: its candidates, whether a linear may stay as it is, which input each linear has, and
    what all of it was made from."""

    candidates: list[Candidate]
    untouched: bool
    reads: Mapping[str, str]
    provenance: Provenance


class Budget(NamedTuple):
    """What a choice must keep within; embeddings: the input's and the head, as every candidate has them quantised, and
    end_loss: the file of what is known of them."""

    limits: dict[str, float]
    embeddings: Sequence[Embedding] = ()
    end_loss: str | None = None


def given(
    records: Sequence[str],
    tables: Sequence[str],
    swaps: Sequence[str] | None,
    methods: Mapping[str, dict[str, Any]],
    moments: str,
    provenance: Provenance,
) -> Given:
    """records, tables, swaps: of these methods, in their order; provenance: of what is made, its candidates added."""
    made_from = {key: provenance[key] for key in ("model_fingerprint", "token_fingerprint")}
    with tensorfile.opened(moments) as file:
        require(file.path, file.info("provenance"), **made_from)
        reads = file.info("reads")
    fingerprint = provenance["model_fingerprint"]
    candidates = [
        finished(record, table, None if swaps is None else swaps[i], method, methods[method], fingerprint)
        for i, (record, table, method) in enumerate(zip(records, tables, methods, strict=True))
    ]
    untouched = any(each["bits"] == UNTOUCHED for each in provenance["recipe"]["candidates"])
    marks = {each.method: mark(each.record["provenance"]) for each in candidates}
    return Given(candidates, untouched, reads, {**provenance, "candidates": marks})


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
    ends: Sequence[Embedding],
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
            own = kept_in(each, held)
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
    bits = [min(LARGEST, limit) for limit in (limits["bits_per_weight"] * weights, limits["size_mb"] * 8e6)]
    most = np.array([int(bits[0]), int(bits[1]) - rest], dtype=np.int64)
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


class Choice(NamedTuple):
    """Of each linear, then of each end, its candidate; options: what these are, None for as it is; weights: of all
    linears; nats: what each is predicted to cost the model, and corrected by swaps, where there are some."""

    options: list[Candidate | None]
    chosen: np.ndarray
    bits: np.ndarray
    weights: int
    nats: np.ndarray
    corrected: np.ndarray | None
    words: str | None

    def words_of(self) -> dict[str, str]:
        return {} if self.words is None else {"swaps": self.words}

    def said(self, i: int) -> dict[str, float]:
        """Of a linear's row."""
        return {} if self.corrected is None else {"corrected_nats": float(self.corrected[i])}


def choice_of(
    model: tensorfile.TensorFile,
    held: Sequence[stored.Stored],
    source: Source,
    known: Given,
    budget: Budget,
) -> Choice:
    """model, held: the original's weights and each candidate's."""
    names, dense, ends = list(source.linears), model.layout(), budget.embeddings
    candidates, untouched = known.candidates, known.untouched
    # where transformers holds experts in one parameter, it reads them on one grid, and none that are not packed
    alike = "asymmetric" in source.unpacked and all(each.is_packed for each in candidates)
    options: list[Candidate | None] = [*candidates, *([None] if untouched else [])]
    layouts = [each.file.layout() for each in held] + [dense] * untouched
    costs = np.array([[0.0 if each is None else each.costs[name] for each in options] for name in names])
    fitted = None
    if measured := {k: each.swaps for k, each in enumerate(candidates) if each.swaps is not None}:
        swaps = {(part, k): kl for k, each in measured.items() for part, kl in each.parts.items()}
        whole = {k: each.whole for k, each in measured.items()}
        fitted = corrected(costs, names, next(iter(measured.values())).linears, swaps, whole)
    own_keys = {f"{name}.weight" for name in (*names, *(end.name for end in ends))}
    others = {key: dense[key] for key in dense if key not in own_keys}
    sizes = sizes_of(options, names, dense, layouts)
    right = costs if fitted is None else fitted.costs
    if ends:
        assert budget.end_loss is not None  # it is every budget's
        damages = [
            predicted(
                model.get(f"{end.name}.weight", dtype=torch.float32) - held[0].weight(end.name),
                known_of(budget.end_loss, end.owners, known.provenance, "cpu"),
            )
            for end in ends
        ]
        end_costs, own_sizes = ends_among(ends, len(options), untouched, dense, layouts[0], damages)
        costs, right = np.concatenate([costs, end_costs]), np.concatenate([right, end_costs])
        sizes = np.concatenate([sizes, own_sizes], axis=1)
    weights = sum(torch.Size(dense[f"{name}.weight"][1]).numel() for name in names)
    rest = packed.bits_of(others) + 8 * tensorfile.header_bytes(others, metadata_of(model, known.provenance))
    at = {name: i for i, name in enumerate(names)}
    if alike and untouched:
        right = right.copy()
        right[[at[name] for name in names if experts_of(name)], -1] = np.nan
    groups = [[at[name] for name in group] for group in tied_groups(names, known.reads, alike)]
    groups += [[len(names) + i] for i in range(len(ends))]
    chosen = choose(right, sizes, budget.limits, groups, weights, rest)
    picked = np.arange(len(costs)), chosen
    better = None if fitted is None else fitted.of(chosen[: len(names)])
    return Choice(
        options, chosen, sizes[0][picked], weights, costs[picked], better, None if fitted is None else fitted.words()
    )


def widths_of(source: Source, known: Given, budget: Budget) -> dict[str, Any]:
    """A row for each linear with its bits and group_size, for a recipe that quantises the whole model with them; the
    choice is within the limits if its file's header is no longer than one with all of this provenance."""
    fingerprint, linears = known.provenance["model_fingerprint"], source.linears
    with contextlib.ExitStack() as files:
        model = files.enter_context(tensorfile.opened(source.folder / "model.safetensors"))
        held = [files.enter_context(stored.opened(each.checkpoint, fingerprint)) for each in known.candidates]
        choice = choice_of(model, held, source, known, budget)
    rows = []
    for i, name in enumerate(linears):
        each = choice.options[choice.chosen[i]]
        assert each is not None  # there is no such candidate
        recipe = each.record["provenance"]["recipe"]
        grid = {key: recipe[key] for key in ("bits", "group_size")}
        rows.append({"linear": name} | grid | {"predicted_nats": float(choice.nats[i])} | choice.said(i))
    found = {"linears": rows, "bits_per_weight": int(choice.bits[: len(linears)].sum()) / choice.weights}
    return found | choice.words_of() | {"predicted_nats": float(choice.nats.sum()), "provenance": known.provenance}
