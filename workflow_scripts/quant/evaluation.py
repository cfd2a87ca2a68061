"""Perplexity, KL divergence and agreement of a checkpoint, by plain transformers.

NLL is in nats per predicted token; a sequence of n tokens predicts n-1. KL(original ‖ method) and top-1 agreement are
taken over the first `kl_tokens` predictions, against the original's log-probabilities kept in float16.
"""

import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from quant import tensorfile
from quant.artifacts import mark, read_json, rebuild, require, versions, write_json
from quant.compute import batch_tokens, device, dtype
from quant.errors import InputError
from quant.tokens import Batch, Tokens, batches
from quant.tokens import load as load_tokens

logger = logging.getLogger("quant")

SPEC = ("text", "protocol", "seq_len", "n_samples")  # what a data set's token ids are made by
CHUNK = 512  # rows of logits in float32 at a time


class Divergence(NamedTuple):
    """Mean KL in nats and share of equal top-1 predictions over `tokens` predictions."""

    kl: float
    top1_agreement: float
    tokens: int


def load_model(checkpoint: Path, device: str, dtype: torch.dtype) -> nn.Module:
    """The checkpoint as any user would load it."""
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).to(device).eval()
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(
            f"{checkpoint}: cannot be loaded ({str(error).splitlines()[0]}); "
            f"{rebuild(checkpoint / 'model.safetensors')}"
        ) from None


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) in float64 of logits [n, vocab], targets [n] → [n]."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").double()


def log_probabilities(logits: Tensor) -> Tensor:
    """[n, vocab] float32."""
    return torch.log_softmax(logits.float(), dim=-1)


def kl_divergence(reference: Tensor, log_q: Tensor) -> Tensor:
    """Σ p (log p - log q) [n], p renormalised from stored log-probabilities [n, vocab]."""
    log_p = torch.log_softmax(reference.float(), dim=-1)
    # a token that the original gives no probability adds nothing, whatever log_q says
    terms = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0)
    return terms.sum(-1, dtype=torch.float64)


def predictions(logits: Tensor, batch: Batch) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(sequence index, logits [length-1, vocab], targets [length-1]) of each sequence of a batch."""
    for row, length in enumerate(batch.lengths.tolist()):
        yield batch.first + row, logits[row, : length - 1], batch.ids[row, 1:length].to(logits.device)


class Reference:
    """The original's log-probabilities [tokens, vocab] in float16, collected or compared with."""

    def __init__(self, tokens: int, stored: Tensor | None) -> None:
        self.tokens, self.stored = tokens, stored
        self.kept: list[Tensor] = []
        self.done = self.agreed = 0
        self.kl = 0.0

    def see(self, logits: Tensor) -> None:
        logits = logits[: self.tokens - self.done]
        for part in logits.split(CHUNK):
            log_q = log_probabilities(part)
            if self.stored is None:
                self.kept.append(log_q.half().cpu())
            else:
                reference = self.stored[self.done : self.done + len(part)].to(part.device)
                self.kl += kl_divergence(reference, log_q).sum().item()
                self.agreed += int((reference.argmax(-1) == log_q.half().argmax(-1)).sum())
            self.done += len(part)

    def divergence(self) -> Divergence:
        if self.stored is None:
            return Divergence(0.0, 1.0, self.done)
        return Divergence(self.kl / self.done, self.agreed / self.done, self.done)


def read_reference(path: Path, **expected: str) -> Tensor:
    """Stored log-probabilities, refused when they belong to other tokens or another model."""
    with tensorfile.opened(path) as file:
        require(path, {key: file.info(key) for key in expected}, **expected)
        return file.get("log_probabilities")


@torch.inference_mode()
def evaluate(
    model: nn.Module, tokens: Tokens, device: str, batch_tokens: int, reference: Reference
) -> tuple[list[dict[str, Any]], float]:
    """A row per sequence {"sequence", "tokens", "nll" (sum, nats)}, and tokens per second of the forward pass."""
    rows: list[dict[str, Any]] = []
    seconds = 0.0
    work = list(batches(tokens.sequences, batch_tokens))
    for batch in tqdm(work, desc="evaluate", unit="batch"):
        begun = time.perf_counter()
        logits = model(batch.ids.to(device), use_cache=False).logits
        if device == "cuda":
            torch.cuda.synchronize()
        seconds += time.perf_counter() - begun
        for index, scores, targets in predictions(logits, batch):
            nll = sum(
                token_nll(s, t).sum().item() for s, t in zip(scores.split(CHUNK), targets.split(CHUNK), strict=True)
            )
            if not torch.isfinite(torch.tensor(nll)):
                raise InputError(
                    f"sequence {index}: its NLL is not finite; the checkpoint is broken (weights that overflow?)"
                )
            rows.append({"sequence": index, "tokens": len(targets), "nll": nll})
            if reference.done < reference.tokens:
                reference.see(scores)
    return rows, tokens.count / seconds


def checkpoint_bytes(checkpoint: Path) -> int:
    """Bytes of the weights on disk."""
    return sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))


def run(
    config_path: str,
    tokens_path: str,
    dataset: dict[str, Any],
    compute: dict[str, Any],
    names: dict[str, str],
    out: str,
    reference_in: str | None = None,
    reference_out: str | None = None,
    record: str | None = None,
    model_record: str | None = None,
    recipe: dict[str, Any] | None = None,
) -> None:
    """Evaluates the checkpoint beside config_path and writes `out`; the original also writes reference_out.

    record: of the quantised checkpoint; model_record: of the original. What was not made from them and from this
    recipe, data set and model is refused.
    """
    checkpoint = Path(config_path).parent
    of_model = (
        {} if model_record is None else {"model_fingerprint": tensorfile.model_record(model_record)["fingerprint"]}
    )
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
    stored = None
    if reference_in is not None:
        stored = read_reference(Path(reference_in), token_fingerprint=tokens.fingerprint, **of_model)
    wanted = min(dataset["kl_tokens"], tokens.count - len(tokens.sequences))
    reference = Reference(wanted, stored)
    model = load_model(checkpoint, where, dtype(compute["dtype"], where, checkpoint))
    rows, speed = evaluate(model, tokens, where, batch_tokens(compute["batch_tokens"], where), reference)
    divergence = reference.divergence()
    if reference_out is not None:
        made_from = {"token_fingerprint": tokens.fingerprint} | of_model
        metadata = {key: json.dumps(value) for key, value in made_from.items()}
        tensorfile.save(reference_out, {"log_probabilities": torch.cat(reference.kept)}, metadata)
    nll = sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows)
    logger.info("perplexity %.4f over %d tokens", math.exp(nll), tokens.count)
    write_json(
        out,
        {
            **{key: names[key] for key in ("model", "method", "dataset")},
            **{key: dataset[key] for key in ("protocol", "seq_len")},
            "kl": divergence.kl,
            "top1_agreement": divergence.top1_agreement,
            "kl_tokens": divergence.tokens,
            "tokens_per_s": speed,
            "size_mb": checkpoint_bytes(checkpoint) / 1e6,
            **made["summary"],
            "checkpoint": mark(made["provenance"]),
            "sequences": rows,
            "provenance": made["provenance"] | {"evaluated_tokens": tokens.fingerprint, "device": where},
        },
    )


def original_summary(checkpoint: Path) -> dict[str, Any]:
    """What quantize.json says of a method, for the unquantised model as it is stored."""
    with tensorfile.opened(checkpoint / "model.safetensors") as file:
        dtype = next(dtype for dtype, shape in file.layout().values() if len(shape) == 2)
    return {"bits_per_weight": 8.0 * dtype.itemsize, "quantize_s": 0.0, "storage": "original"}
