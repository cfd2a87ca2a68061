"""A checkpoint put together from finished ones, each linear from the one that a budget gives it."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from quant.checkpoints import stored
from quant.checkpoints.around import metadata_of
from quant.checkpoints.embeddings import kept_in
from quant.errors import InputError
from quant.files import shards, tensorfile
from quant.files.finite import put_finite
from quant.methods.budgets.choice import Budget, Candidate, Choice, Given, choice_of, weight_tensors
from quant.methods.form import Form
from quant.methods.source import Output, Source
from quant.recipe.widths import UNTOUCHED
from quant.records.method import MethodRecord

UNUSED = "its budget leaves every linear in 16 bit"


def mix_checkpoint(source: Source, target: Output, known: Given, budget: Budget) -> MethodRecord:
    """Chooses within a budget's limits and writes the target's weights beside copies of the source's other files, and
    the folds. Returns a row per linear and the summary."""
    begun, linears, ends = time.perf_counter(), source.linears, budget.embeddings
    names = list(linears)
    candidates, provenance = known.candidates, known.provenance
    with contextlib.ExitStack() as files:
        model = files.enter_context(tensorfile.opened(source.folder / "model.safetensors"))
        fingerprint = provenance["model_fingerprint"]
        held = [files.enter_context(stored.opened(each.checkpoint, fingerprint)) for each in candidates]
        folds = [files.enter_context(tensorfile.opened(each.folder / "folds.safetensors")) for each in candidates]
        choice = choice_of(model, held, source, known, budget)
        options, chosen = choice.options, choice.chosen
        own_keys = {f"{name}.weight" for name in (*names, *(end.name for end in ends))}
        others = [key for key in model.layout() if key not in own_keys]
        taken = [end for end, k in zip(ends, chosen[len(names) :], strict=True) if k == 0]
        of = {name: options[k] for name, k in zip(names, chosen[: len(names)], strict=True)}
        index = {each.method: i for i, each in enumerate(candidates)}
        used = sorted({index[each.method] for each in of.values() if each is not None})
        check_folds([(candidates[i].method, held[i].file) for i in used], names)
        grids = next((why(candidates[i]) for i in used if why(candidates[i])), "" if used else UNUSED) or {
            name: held[index[each.method]].packed[name] for name, each in of.items() if each
        }
        form = Form.of(model, source, provenance, grids, taken)
        moved: dict[str, Tensor] = {}
        with shards.writing(target.folder / model.path.name, form.layout, metadata_of(model, provenance)) as out:
            for name, each in of.items():
                i = index[each.method] if each else next(iter(used), 0)
                own = folds_of(name, folds[i]) if used else {}
                moved |= own
                if name in form.grids:
                    written = {key: held[i].file.get(key) for key in weight_tensors(name, form.layout)}
                elif each is None:
                    w = model.get(f"{name}.weight", dtype=torch.float32)
                    w = w * own.get(f"{name}.input", torch.ones(1))
                    written = {f"{name}.weight": w * own.get(f"{name}.output", torch.ones(1))[:, None]}
                else:
                    written = {f"{name}.weight": held[i].weight(name)}
                put_finite(out, written, target.folder)
            for end in ends:
                if end not in taken:
                    written = {f"{end.name}.weight": model.get(f"{end.name}.weight")}
                elif form.grids:
                    written = {key: held[0].file.get(key) for key in kept_in(end, form.layout)}
                else:
                    written = {f"{end.name}.weight": held[0].weight(end.name)}
                put_finite(out, written, target.folder)
            for key in others:
                out.put(key, (held[used[0]].file if used else model).get(key))
    tensorfile.save(target.folds, moved, {"provenance": json.dumps(provenance)})
    gone = {name for end in taken for name in end.owners}
    embedding_rows = [row for row in candidates[0].record.get("embeddings", []) if row["module"] in gone]
    rows = list(rows_of(of, linears, choice))
    record = form.finish(target.folder, rows, time.perf_counter() - begun, embedding_rows)
    record["predicted_nats"] = float(choice.nats.sum())
    if choice.words is not None:
        record["swaps"] = choice.words
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
                    "together; use candidates of one search_bits and one search_group_size, or leave salience out"
                )


def rows_of(of: Mapping[str, Candidate | None], linears: Mapping[str, int], choice: Choice) -> Iterator[dict[str, Any]]:
    """A row for each linear: its candidate's own, with its grid."""
    known: dict[str, dict[str, dict[str, Any]]] = {}
    for i, (name, each) in enumerate(of.items()):
        own = {"storage_bits": int(choice.bits[i])} | choice.said(i)
        if each is None:
            yield {"linear": name, "layer": linears[name], "bits": UNTOUCHED} | own
            continue
        if each.method not in known:
            known[each.method] = {row["linear"]: row for row in each.record["linears"]}
        recipe = each.record["provenance"]["recipe"]
        yield known[each.method][name] | {key: recipe[key] for key in ("bits", "group_size")} | own
