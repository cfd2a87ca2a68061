"""One evaluation from files to a file: what its JSON holds, and what was not made for this study refused."""

import contextlib
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quant.checkpoints.coverage import quantized_share
from quant.checkpoints.sizes import parts_mb
from quant.data.tokens import load as load_tokens
from quant.errors import InputError
from quant.evaluation.divergence import budgeted, keeping, reading, whole_budget
from quant.evaluation.head import Head
from quant.evaluation.perplexity import load_model, measure
from quant.evaluation.sanity import judge
from quant.files import tensorfile
from quant.files.artifacts import mark, read_json, require, versions, write_json
from quant.models.compute import batch_tokens, device, dtype
from quant.models.record import model_record as opened_model

logger = logging.getLogger("quant")

SPEC = ("text", "protocol", "seq_len", "n_samples")  # what a data set's token ids are made by


def checkpoint_bytes(checkpoint: Path) -> int:
    """Bytes of the weights on disk."""
    return sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))


def opened_head(checkpoint: Path, where: str, kind: torch.dtype) -> Head:
    """A checkpoint as two parts."""
    return Head(load_model(checkpoint, where, kind), where)


def run(
    config_path: str,
    tokens_path: str,
    dataset: dict[str, Any],
    compute: dict[str, Any],
    names: dict[str, str],
    out: str,
    reference_in: str | None = None,
    reference_out: str | None = None,
    original: str | None = None,
    record: str | None = None,
    model_record: str | None = None,
    recipe: dict[str, Any] | None = None,
    implausible: str = "continue",
) -> None:
    """Evaluates the checkpoint beside config_path and writes `out`; the original also writes reference_out, which a
    method's evaluation reads (reference_in).

    original: config of the unquantised model, which is loaded where a method's head is another one.

    implausible: whether to `stop` at an original that makes no sense (quant.evaluation.sanity), or to `continue` and
    say so in its storage_reason.

    record: of the quantised checkpoint; model_record: of the original. What was not made from them and from this
    recipe, data set and model is refused.
    """
    checkpoint = Path(config_path).parent
    of_model = {} if model_record is None else {"model_fingerprint": opened_model(model_record)["fingerprint"]}
    spec = {"spec": {key: dataset[key] for key in SPEC}} if of_model else {}
    tokens = load_tokens(tokens_path, **of_model, **spec)
    where = device(compute["device"])
    if record is None:
        made = {"summary": original_summary(checkpoint), "provenance": {"versions": versions()} | of_model}
    else:
        made = read_json(record)
    if recipe is not None:
        require(str(record), made["provenance"], **of_model, recipe=recipe)
        with tensorfile.opened(checkpoint / "model.safetensors") as file:
            require(file.path, {"record": file.info("provenance")}, record=made["provenance"])
    tensorfile.verify(checkpoint / "model.safetensors")
    kind = dtype(compute["dtype"], where, checkpoint)
    expected = {"token_fingerprint": tokens.fingerprint} | of_model
    reference = keep = None
    with torch.inference_mode(), contextlib.ExitStack() as files:
        head = opened_head(checkpoint, where, kind)
        if reference_in is not None:
            load = partial(opened_head, Path(original or config_path).parent, where, kind)
            reference = files.enter_context(reading(reference_in, head, load, **expected))
        if reference_out is not None:
            counts = budgeted(tokens.sequences, whole_budget(head, dataset["kl_tokens"]))
            keep = files.enter_context(keeping(reference_out, head, counts, expected))
        rows, speed = measure(head, tokens, batch_tokens(compute["batch_tokens"], where), reference, keep)
    if reference_out is not None:
        rows = [row | {"kl_tokens": n, "kl": 0.0, "agreed": n} for row, n in zip(rows, counts, strict=True)]
    compared = sum(row["kl_tokens"] for row in rows)
    nll = sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows)
    logger.info("perplexity %.4f over %d tokens", math.exp(nll), tokens.count)
    sense = {}
    if record is None:
        text = tokens.provenance.get("characters"), tokens.provenance.get("latin", True)
        found = judge(nll, tokens.sequences, head.model.config.get_text_config().vocab_size, *text)
        sense = {key: value for key, value in found._asdict().items() if key != "doubt"}
        doubted(found.doubt, f"{names['model']} on {names['dataset']}", implausible)
        made["summary"]["storage_reason"] = found.doubt
    write_json(
        out,
        {
            **{key: names[key] for key in ("model", "method", "dataset")},
            **{key: dataset[key] for key in ("protocol", "seq_len")},
            "kl": sum(row["kl"] for row in rows) / compared,
            "top1_agreement": sum(row["agreed"] for row in rows) / compared,
            "kl_tokens": compared,
            "tokens_per_s": speed,
            "size_mb": checkpoint_bytes(checkpoint) / 1e6,
            **parts_mb(checkpoint / "model.safetensors", head.model),
            **made["summary"],
            **sense,
            "file_bits_per_weight": 8 * checkpoint_bytes(checkpoint) / made["summary"]["parameters"],
            "checkpoint": mark(made["provenance"]),
            "sequences": rows,
            "provenance": made["provenance"] | {"evaluated_tokens": tokens.fingerprint, "device": where},
        },
    )


def doubted(doubt: str, what: str, implausible: str) -> None:
    """Stops at an original that makes no sense, or says so."""
    if doubt and implausible == "stop":
        raise InputError(
            f"{what}: the original model makes no sense: {doubt}; look at its tokenizer, its BOS, its conversion and "
            "the text, or write original: {implausible: continue} to go on under that caveat"
        )
    if doubt:
        logger.warning("%s: the original model makes no sense: %s; goes on, as it was told to", what, doubt)


def original_summary(checkpoint: Path) -> dict[str, Any]:
    """What quantize.json says of a method, for the unquantised model as it is stored."""
    with tensorfile.opened(checkpoint / "model.safetensors") as file:
        layout = file.layout()
    dtype = next(dtype for dtype, shape in layout.values() if len(shape) == 2)
    storage = {"storage": "original", "storage_reason": ""} | quantized_share(layout, ())
    return {"bits_per_weight": 8.0 * dtype.itemsize, "quantize_s": 0.0} | storage
