"""Text to calibrate and evaluate on, and how it becomes sequences of token ids."""

import ast
import contextlib
import importlib.util
import io
import logging
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quant.data import tokens
from quant.data.overlap import short_words
from quant.data.split import halves, split_topics
from quant.data.text_files import JSON_LINES, read_file
from quant.data.wording import source_words
from quant.errors import InputError, one_line
from quant.files.artifacts import read_json, versions
from quant.models.sources.hub import HUB_TIMEOUT
from quant.models.tokenization import tokenizers

logger = logging.getLogger("quant")

LOCAL_TEXT = "give local text instead (text: {files: [PATH]})"
NEEDS_BOS = ("gemma", "recurrent_gemma", "vaultgemma")  # model types whose perplexity is nonsense without


def reference_topics() -> dict[str, str]:
    """The Python language reference by topic, from the standard library."""
    from pydoc_data.topics import topics

    return dict(topics)


def docstrings(module: str) -> list[str]:
    """Every docstring of a module of the standard library, in the order of its source, which is read and not run."""
    if module.partition(".")[0] not in sys.stdlib_module_names:
        raise InputError(
            f"docstrings: {module}: not in Python's standard library; name a module of it, such as argparse"
        )
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    source = (found and found.origin) or ""
    if not source.endswith(".py"):
        raise InputError(f"docstrings: {module}: has no Python source; name a module that has, such as argparse")
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ast.walk(ast.parse(Path(source).read_bytes()))
    holders = [node for node in nodes if isinstance(node, kinds) and ast.get_docstring(node)]
    return [ast.get_docstring(node) or "" for node in sorted(holders, key=lambda node: getattr(node, "lineno", 0))]


@contextlib.contextmanager
def only_cached(really: bool) -> Iterator[None]:
    """Within it, the hub's client fails at once instead of trying again and again; what is cached still loads."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or really
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def hub_trouble(path: str, revision: str) -> str | None:
    """Why the hub cannot be reached, asked once; None where it answers or `path` is local."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if Path(path).exists():
        return None
    try:
        HfApi().dataset_info(path, revision=revision, timeout=HUB_TIMEOUT)
    except HFValidationError:
        raise InputError(f"data set {path}: is neither a hub id nor a local directory; {LOCAL_TEXT}") from None
    except RevisionNotFoundError:
        raise InputError(
            f"data set {path}: the hub has no revision {revision}; give a commit hash that exists"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(f"data set {path}: the hub has no such data set, or it is private; {LOCAL_TEXT}") from None
    except Exception as error:  # the client lets its transport's exceptions through, whatever that is
        return one_line(error)
    return None


def read_hub(spec: dict[str, Any]) -> list[str]:
    """A column of a hub data set at a pinned revision; of one of its files where `data_files` names that, since the
    library else fetches every split of a configuration."""
    part = {spec["split"].partition("[")[0]: spec["data_files"]} if spec.get("data_files") else None
    where = f"data set {spec['path']}"
    trouble = hub_trouble(spec["path"], spec["revision"])
    from datasets import load_dataset

    try:
        with only_cached(trouble is not None):
            rows = load_dataset(
                spec["path"], spec.get("name"), data_files=part, split=spec["split"], revision=spec["revision"]
            )
    except Exception as error:  # the data set library wraps many kinds; each is the user's to mend
        reason = (
            f"the hub cannot be reached ({trouble})"
            if trouble
            else f"cannot be loaded ({one_line(error.__cause__ or error)})"
        )
        raise InputError(f"{where}: {reason}; {LOCAL_TEXT}") from None
    column = spec["text_column"]
    if column not in rows.column_names:
        raise InputError(f"{where}: has no column {column}; choose one of {', '.join(rows.column_names)}")
    texts = list(rows[column])
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{where}: {column} is a {type(text).__name__} in row {row}; choose a column of texts")
    return texts


def whole_texts(spec: dict[str, Any], by_line: bool = False) -> list[str]:
    """The texts of {"pydoc_topics": PART}, {"docstrings": […]}, {"files": [PATH], "field": NAME} or {"hub": {…}}.

    A file is one text, or by_line a text a line; JSON lines are a text each in both.
    """
    if "pydoc_topics" in spec:
        topics = reference_topics()
        return [topics[name] for name in split_topics(topics)[spec["pydoc_topics"]]]
    if "docstrings" in spec:
        return [text for module in spec["docstrings"] for text in docstrings(module)]
    if "files" in spec:
        return [
            text
            for path in spec["files"]
            for lines in [read_file(path, spec.get("field"))]
            for text in (lines if by_line or of_lines(path, spec) else ["".join(lines)])
        ]
    return read_hub(spec["hub"])


def of_lines(path: str, spec: dict[str, Any]) -> bool:
    """Whether a file holds a text in each line, as JSON."""
    return "field" in spec or path.lower().endswith(JSON_LINES)


def read_texts(spec: dict[str, Any], protocol: str = "samples") -> list[str]:
    """The texts of a source, or of one of its two parts where spec has `part`.

    A file is one text where the protocol joins texts (windows), and a text a line where it does not (samples).
    """
    if "part" not in spec:
        return whole_texts(spec, by_line=protocol == "samples")
    source = {key: spec[key] for key in spec if key != "part"}
    texts = halves(whole_texts(source), source_words(source))[spec["part"]]
    if "files" in spec and protocol == "samples" and not all(of_lines(path, spec) for path in spec["files"]):
        return [line for text in texts for line in io.StringIO(text, newline="\n").readlines()]
    return texts


class Frame(NamedTuple):
    """Special tokens that a tokenizer puts before and behind a text; always: every window needs those before it."""

    before: list[int]
    behind: list[int]
    always: bool = False

    @classmethod
    def of(cls, tokenizer: Any, model_type: str = "") -> "Frame":
        """Those of a tokenizer, and BOS for a family that breaks without one."""
        found = tokenizer("a", return_special_tokens_mask=True)
        ids, marks = found["input_ids"], found["special_tokens_mask"]
        text = [at for at, mark in enumerate(marks) if not mark] or [len(ids)]
        before, behind, always = ids[: text[0]], ids[text[-1] + 1 :], model_type.startswith(NEEDS_BOS)
        if always and not before and tokenizer.bos_token_id is not None:
            before = [tokenizer.bos_token_id]
        return cls(before, behind, always)


def sequences(
    tokenizer: Any,
    texts: list[str],
    protocol: str,
    seq_len: int,
    n: int,
    seed: int | None,
    what: str,
    special_tokens: bool = False,
    model_type: str = "",
) -> list[Tensor]:
    """Token ids by protocol, each [length].

    `windows`: texts joined by blank lines, tokenised once (so one BOS at most), cut into windows of seq_len. Where the
    model's family needs BOS (NEEDS_BOS), every window begins with it and holds one token less of the text.
    `samples`: each non-empty text tokenised alone and cut at seq_len; those of one token are left out.
    special_tokens: names of special tokens within the text, such as </s>, are those tokens, and no plain characters.
    """
    if not any(text.strip() for text in texts):
        raise InputError(f"{what}: its text is empty; name a text with words in it")
    frame = Frame.of(tokenizer, model_type)
    options = {"add_special_tokens": False, "split_special_tokens": not special_tokens, "verbose": False}
    before, behind = (torch.tensor(ids, dtype=torch.long) for ids in (frame.before, frame.behind))
    if protocol == "windows":
        ids = torch.tensor(tokenizer("\n\n".join(texts), **options)["input_ids"], dtype=torch.long)
        if frame.always:
            found = [torch.cat([before, window]) for window in tokens.windows(ids, max(seq_len - len(before), 1))]
        else:
            ids = torch.cat([before, ids, behind])
            found = tokens.windows(ids, seq_len)
        if not found:
            raise InputError(
                f"{what}: its text gives {len(ids)} tokens, less than one window of {seq_len}; use more text or a "
                "smaller seq_len"
            )
    else:
        room = max(seq_len - len(before) - len(behind), 0)
        whole = tokenizer([text for text in texts if text.strip()], **options)["input_ids"]
        cut = [torch.cat([before, torch.tensor(ids[:room], dtype=torch.long), behind]) for ids in whole]
        found = [ids for ids in cut if len(ids) > 1]
        if not found:
            raise InputError(f"{what}: no text has two tokens or more; use more text")
    chosen = tokens.choose(found, n, seed)
    if frame.before:
        names = " ".join(map(str, tokenizer.convert_ids_to_tokens(frame.before)))
        every = frame.always or protocol == "samples"
        logger.info("%s: %s begins with %s", what, "every sequence" if every else "the first window alone", names)
    return chosen


def check_fit(checkpoint: Path, found: list[Tensor], what: str) -> None:
    """Refuses token ids and lengths that the model has no embedding or position for."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint).get_text_config()
    largest, longest = max(int(ids.max()) for ids in found), max(len(ids) for ids in found)
    if largest >= config.vocab_size:
        raise InputError(
            f"{what}: its tokenizer gives id {largest}, the model has {config.vocab_size} embeddings; give the "
            "tokenizer that belongs to this model"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise InputError(
            f"{what}.seq_len: sequences of {longest} tokens, the model was made for {positions} at most; write a "
            "smaller seq_len"
        )


def shares(n: int, parts: int) -> list[int]:
    """n in parts as equal as can be, the larger ones first."""
    if n < parts:
        raise InputError(f"calibration: n_calib: {n}, and {parts} texts to take it of; write at least {parts}")
    return [n // parts + (i < n % parts) for i in range(parts)]


def in_turns(parts: list[list[Tensor]]) -> list[Tensor]:
    """The first of each part, then their second ones, and so on; parts end where they end."""
    return [each for turn in zip_longest(*parts) for each in turn if each is not None]


def tokenize(
    checkpoint: Path,
    model_fingerprint: str,
    spec: dict[str, Any],
    n: int,
    seed: int | None,
    what: str,
    path: str,
    asked: str = "",
) -> None:
    """Writes the sequences of a text spec (text, protocol, seq_len; mix: other texts that give as many, in turns with
    it) by the checkpoint's tokenizer; asked: how n is said where the text has fewer."""
    tokenizer = tokenizers.load(checkpoint)
    kind = read_json(checkpoint / "config.json").get("model_type", "")
    own = [spec["text"], *spec.get("mix", ())]
    parts = []
    for source, share in zip(own, shares(n, len(own)), strict=True):
        texts, parsed = read_texts(source, spec["protocol"]), source.get("special_tokens", False)
        name = what if len(own) == 1 else f"{what}, {source_words(source)}"
        parts.append(sequences(tokenizer, texts, spec["protocol"], spec["seq_len"], share, seed, name, parsed, kind))
        if len(own) > 1:
            logger.info("%s: %d sequences", name, len(parts[-1]))
    found = in_turns(parts)
    check_fit(checkpoint, found, what)
    text = "".join(tokenizer.batch_decode(found, skip_special_tokens=True))
    letters = [character for character in text if character.isalpha()]
    latin = 2 * sum(character < "\u0250" for character in letters) >= len(letters)
    read = {"characters": len(text), "latin": latin}
    record = {"spec": spec, "model_fingerprint": model_fingerprint, "versions": versions()} | read
    mark = tokens.save(path, found, record)
    if len(found) < n:
        logger.info("%s: the text gives %d sequences, fewer than %s", what, len(found), asked or f"the {n} it may")
    if short_words(len(found)):
        logger.warning("%s: %d sequences%s", what, len(found), short_words(len(found)))
    logger.info("%s: %d sequences, %d tokens, fingerprint %s", what, len(found), sum(map(len, found)), mark)
