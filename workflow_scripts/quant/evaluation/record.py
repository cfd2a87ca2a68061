"""One evaluation from files to a file: what its JSON holds, and what was not made for this study refused."""

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from quant.checkpoints.coverage import quantized_share
from quant.checkpoints.sizes import parts_mb, parts_of
from quant.data.tokens import Shard, Tokens
from quant.data.tokens import load as load_tokens
from quant.errors import InputError
from quant.evaluation.by_block import ByBlock, too_large
from quant.evaluation.divergence import budgeted, join, keeping, reading, whole_budget
from quant.evaluation.head import Head
from quant.evaluation.perplexity import load_model, measure
from quant.evaluation.profile import Profile, Sums, joined
from quant.evaluation.provenance import exported_as, method_record
from quant.evaluation.sanity import judge
from quant.files import tensorfile
from quant.files.artifacts import mark, read_json, require, versions, write_json
from quant.models.conversion.record import model_record
from quant.records.evaluation import Evaluation, Sense, SequenceRow, Sizes
from quant.records.method import GGUF, MethodRecord, Provenance, Summary
from quant.runtime.compute import Compute

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("quant")

SPEC = ("text", "protocol", "seq_len", "n_samples")  # what a data set's token ids are made by


def checkpoint_bytes(checkpoint: Path) -> int:
    """Bytes of the weights on disk."""
    return sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))


def opened_head(checkpoint: Path, compute: Compute, by_block: bool, sequences: list[torch.Tensor]) -> Head:
    """A checkpoint, or a GGUF file, as two parts; by_block: for these sequences, where the device does not hold it."""
    if by_block:
        return ByBlock(checkpoint, sequences, compute)
    return Head(load_model(checkpoint, compute.device, compute.dtype), compute.device)


@dataclass(frozen=True)
class Subject:
    """What is evaluated on what. config: path of the checkpoint's; model_record: path of convert's, where the
    checkpoint and the tokens must be of that model; dataset, compute: as the configuration has them; gguf: path of
    the file that was exported of the checkpoint, where that is what is run."""

    model: str
    method: str
    dataset_name: str
    config: str
    tokens: str
    dataset: Mapping[str, Any]
    compute: Mapping[str, Any]
    model_record: str | None = None
    gguf: str | None = None

    @classmethod
    def of(cls, names: Any, given: Any, params: Any) -> "Subject":
        """Of a job's wildcards, inputs and parameters; without a method, of the original."""
        method = getattr(names, "method", "original")
        files = given.config, given.tokens, params.dataset, params.compute, given.model, given.get("gguf")
        return cls(names.model, method, names.dataset, *files)

    @property
    def checkpoint(self) -> Path:
        return Path(self.config).parent

    @property
    def weights(self) -> Path:
        return self.checkpoint / "model.safetensors"

    @property
    def run(self) -> Path:
        """What is loaded and measured."""
        return self.checkpoint if self.gguf is None else Path(self.gguf)


class Original(NamedTuple):
    """The unquantised model, whose states go to `reference`; implausible: whether to `stop` where it makes no sense
    (quant.evaluation.sanity), or to `continue` and say so in its storage_reason."""

    reference: str
    implausible: str = "continue"


class Quantised(NamedTuple):
    """A method's checkpoint, compared with the original's `reference`; config: the original's, which is loaded where
    the method's head is another one; record: quantize.json; what was not made by that and this recipe is refused."""

    reference: str
    config: str
    record: str
    recipe: Mapping[str, Any] | None = None


def run(subject: Subject, side: Original | Quantised, out: str, shard: Shard | None = None) -> None:
    """Evaluates a checkpoint and writes `out`, or a shard of the sequences for `sum_shards`. Refuses what was not made
    for this model, data set and recipe."""
    facts = Facts.of(subject, side)
    tokens = facts.tokens
    compute = Compute.of(dict(subject.compute), subject.checkpoint)
    by_block = too_large(subject.checkpoint, compute)
    if by_block and subject.gguf:
        raise InputError(
            f"{subject.gguf}: takes more memory than is left, and a GGUF file is run whole; use more, or leave "
            f"{subject.method} out of study.gguf"
        )
    if not by_block:  # which holds what it reads against its checksum
        tensorfile.verify(subject.weights)
    expected = {"token_fingerprint": tokens.fingerprint} | facts.of_model
    first, sequences = (0, tokens.sequences) if shard is None else shard.of(tokens.sequences)
    reference, keep, profile = None, None, Profile(tokens.sequences)
    with torch.inference_mode(), contextlib.ExitStack() as files:
        head = opened_head(subject.run, compute, by_block, sequences)
        if isinstance(side, Quantised):
            load = partial(opened_head, Path(side.config).parent, compute, by_block, [])
            reference = files.enter_context(reading(side.reference, head, load, **expected))
        else:
            counts = budgeted(tokens.sequences, whole_budget(head, subject.dataset["kl_tokens"]))
            counts = [n * (first <= i < first + len(sequences)) for i, n in enumerate(counts)]
            keep = files.enter_context(keeping(side.reference, head, counts, expected))
        some, room = tokens._replace(sequences=sequences), compute.batch_tokens
        rows, speed = measure(head, some, room, reference, keep, first, profile.add) if sequences else ([], 1.0)
    if isinstance(side, Original):
        rows = [row | {"kl_tokens": n, "kl": 0.0, "agreed": n} for row in rows for n in (counts[row["sequence"]],)]
    sums = profile.part(first, len(sequences))
    parts = (
        parts_mb(subject.weights, head.model)
        if subject.gguf is None
        else parts_of(exported_as(subject.run, facts.made))
    )
    measured = Measured(rows, speed, parts, vocabulary(head.model), compute.device, sums)
    if shard is None:
        write_json(out, finished(subject, side, facts, measured))
    else:
        write_json(out, {"measured": measured._asdict(), "made": facts.made, "of": expected | shard._asdict()})


def sum_shards(
    subject: Subject, side: Original | Quantised, parts: Sequence[str], references: Sequence[str], out: str
) -> None:
    """One evaluation of those of all shards, and one reference where they kept parts of it."""
    facts = Facts.of(subject, side)
    tokens, made = facts.tokens, facts.made
    found = []
    for i, path in enumerate(parts):
        part = read_json(path)
        of = {"token_fingerprint": tokens.fingerprint, "shard": i, "shards": len(parts), "made": made} | facts.of_model
        require(path, part["of"] | {"made": part["made"]}, **of)
        found.append(Measured(**part["measured"]))
    lengths = [sum(row["tokens"] + 1 for row in each.rows) for each in found]
    seconds = sum(n / each.speed for n, each in zip(lengths, found, strict=True))
    rows, sums = [row for each in found for row in each.rows], joined([each.sums for each in found])
    whole = found[0]._replace(rows=rows, speed=tokens.count / seconds, sums=sums)
    if isinstance(side, Original):
        join(references, side.reference)
    write_json(out, finished(subject, side, facts, whole))


class Measured(NamedTuple):
    """What running the model gives: rows and tokens per second of `measure`, its parts' sizes, its vocabulary, where,
    and the rows' NLL by bin (quant.evaluation.profile)."""

    rows: list[SequenceRow]
    speed: float
    parts: Sizes
    vocabulary: int
    device: str
    sums: Sums


def vocabulary(model: "PreTrainedModel") -> int:
    """Ids that it knows."""
    return model.config.get_text_config().vocab_size


class Facts(NamedTuple):
    """The model that all must be of, the tokens, and the checkpoint's summary with what it was made from."""

    of_model: dict[str, str]
    tokens: Tokens
    summary: Summary
    made: Provenance | dict[str, Any]

    @classmethod
    def of(cls, subject: Subject, side: Original | Quantised) -> "Facts":
        of_model = (
            {}
            if subject.model_record is None
            else {"model_fingerprint": model_record(subject.model_record)["fingerprint"]}
        )
        spec = {"spec": {key: subject.dataset[key] for key in SPEC}} if of_model else {}
        tokens = load_tokens(subject.tokens, **of_model, **spec)
        return cls(of_model, tokens, *made_of(subject, side, of_model))


def finished(subject: Subject, side: Original | Quantised, facts: Facts, measured: Measured) -> Evaluation:
    """The whole record of what was measured."""
    rows, tokens, summary = measured.rows, facts.tokens, facts.summary
    compared = sum(row["kl_tokens"] for row in rows)
    nll = sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows)
    logger.info("perplexity %.4f over %d tokens", math.exp(nll), tokens.count)
    sense: Sense = {}
    if isinstance(side, Original):
        text = tokens.provenance.get("characters"), tokens.provenance.get("latin", True)
        found = judge(nll, tokens.sequences, measured.vocabulary, *text)
        sense = {"unigram_nll": found.unigram_nll, "tokens_per_character": found.tokens_per_character}
        doubted(found.doubt, f"{subject.model} on {subject.dataset_name}", side.implausible)
        summary["storage_reason"] = found.doubt
    size = checkpoint_bytes(subject.checkpoint) if subject.gguf is None else subject.run.stat().st_size
    with tensorfile.opened(subject.weights) as file:
        tensors = file.mark()
    return {
        "model": subject.model,
        "method": subject.method,
        "dataset": subject.dataset_name,
        "protocol": subject.dataset["protocol"],
        "seq_len": subject.dataset["seq_len"],
        "kl": sum(row["kl"] for row in rows) / compared,
        "top1_agreement": sum(row["agreed"] for row in rows) / compared,
        "kl_tokens": compared,
        "tokens_per_s": measured.speed,
        "size_mb": size / 1e6,
        **measured.parts,
        **summary,
        **sense,
        "file_bits_per_weight": 8 * size / summary["parameters"],
        "checkpoint": mark(facts.made),
        "tensors": tensors,
        "sequences": rows,
        "profile": Profile(tokens.sequences).record(measured.sums),
        "provenance": {**facts.made, "evaluated_tokens": tokens.fingerprint, "device": measured.device},
    }


def made_of(
    subject: Subject, side: Original | Quantised, of_model: dict[str, str]
) -> tuple[Summary, Provenance | dict[str, Any]]:
    """A checkpoint's summary, and what it was made from: held against the subject, and against the file."""
    if isinstance(side, Original):
        return original_summary(subject.checkpoint), {"versions": versions()} | of_model
    record: MethodRecord = (
        read_json(side.record)
        if side.recipe is None
        else method_record(side.record, subject.weights, side.recipe, of_model)
    )
    if subject.gguf is None:
        return record["summary"], record["provenance"]
    bits = exported_as(subject.run, record["provenance"])["bits_per_weight"]
    return record["summary"] | {"bits_per_weight": bits, "storage": GGUF, "no_kernels": ""}, record["provenance"]


def doubted(doubt: str, what: str, implausible: str) -> None:
    """Stops at an original that makes no sense, or says so."""
    if doubt and implausible == "stop":
        raise InputError(
            f"{what}: the original model makes no sense: {doubt}; look at its tokenizer, its BOS, its conversion and "
            "the text, or write original: {implausible: continue} to go on under that caveat"
        )
    if doubt:
        logger.warning("%s: the original model makes no sense: %s; goes on, as it was told to", what, doubt)


def original_summary(checkpoint: Path) -> Summary:
    """What quantize.json says of a method, for the unquantised model as it is stored."""
    with tensorfile.opened(checkpoint / "model.safetensors") as file:
        layout = file.layout()
    dtype = next(dtype for dtype, shape in layout.values() if len(shape) == 2)
    return {
        "bits_per_weight": 8.0 * dtype.itemsize,
        "quantize_s": 0.0,
        "storage": "original",
        "storage_reason": "",
        **quantized_share(layout, ()),
    }
