"""Text to calibrate and evaluate on, and how it becomes sequences of token ids."""

import ast
import codecs
import contextlib
import importlib.util
import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant.data import tokens
from quant.data.split import halves, split_topics
from quant.data.wording import source_words
from quant.errors import InputError
from quant.files.artifacts import versions
from quant.models.sources import HUB_TIMEOUT, one_line

logger = logging.getLogger("quant")

LOCAL_TEXT = "give local text instead (text: {files: [PATH]})"


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
    if found is None or not (found.origin or "").endswith(".py"):
        raise InputError(f"docstrings: {module}: has no Python source; name a module that has, such as argparse")
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ast.walk(ast.parse(Path(found.origin).read_bytes()))
    holders = [node for node in nodes if isinstance(node, kinds) and ast.get_docstring(node)]
    return [ast.get_docstring(node) for node in sorted(holders, key=lambda node: getattr(node, "lineno", 0))]


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
    """A column of a hub data set at a pinned revision."""
    where = f"data set {spec['path']}"
    trouble = hub_trouble(spec["path"], spec["revision"])
    from datasets import load_dataset

    try:
        with only_cached(trouble is not None):
            rows = load_dataset(spec["path"], spec.get("name"), split=spec["split"], revision=spec["revision"])
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


def read_file(path: str) -> list[str]:
    """The lines of a UTF-8 file, line ends kept; a byte order mark is none of its text."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a text file") from None
    text = content.removeprefix(codecs.BOM_UTF8)
    try:
        lines = io.StringIO(text.decode(), newline=None).readlines()
    except UnicodeDecodeError as error:
        at = error.start + len(content) - len(text)
        raise InputError(f"{path}: is not UTF-8 text ({error.reason} at byte {at}); save it as UTF-8") from None
    if not any(line.strip() for line in lines):
        raise InputError(f"{path}: holds no text; name a file with words in it")
    return lines


def whole_texts(spec: dict[str, Any]) -> list[str]:
    """The texts of {"pydoc_topics": PART}, {"docstrings": […]}, {"files": [PATH]} or {"hub": {…}}; a file is one."""
    if "pydoc_topics" in spec:
        topics = reference_topics()
        return [topics[name] for name in split_topics(topics)[spec["pydoc_topics"]]]
    if "docstrings" in spec:
        return [text for module in spec["docstrings"] for text in docstrings(module)]
    if "files" in spec:
        return ["".join(read_file(path)) for path in spec["files"]]
    return read_hub(spec["hub"])


def read_texts(spec: dict[str, Any], protocol: str = "samples") -> list[str]:
    """The texts of a source, or of one of its two parts where spec has `part`.

    A file is one text where the protocol joins texts (windows), and a text a line where it does not (samples).
    """
    texts = whole_texts(spec)
    if "part" in spec:
        texts = halves(texts, source_words({key: spec[key] for key in spec if key != "part"}))[spec["part"]]
    if "files" in spec and protocol == "samples":
        return [line for text in texts for line in io.StringIO(text, newline="\n").readlines()]
    return texts


def sequences(
    tokenizer: Any, texts: list[str], protocol: str, seq_len: int, n: int, seed: int | None, what: str
) -> list[Tensor]:
    """Token ids by protocol, each [length].

    `windows`: texts joined by blank lines, tokenised once (so at most one BOS), cut into windows of seq_len.
    `samples`: each non-empty text tokenised alone and cut at seq_len; those of one token are left out.
    """
    if not any(text.strip() for text in texts):
        raise InputError(f"{what}: its text is empty; name a text with words in it")
    if protocol == "windows":
        ids = tokenizer("\n\n".join(texts), verbose=False)["input_ids"]
        found = tokens.windows(torch.tensor(ids), seq_len)
        if not found:
            raise InputError(
                f"{what}: its text gives {len(ids)} tokens, less than one window of {seq_len}; use more text or a "
                "smaller seq_len"
            )
    else:
        cut = tokenizer([text for text in texts if text.strip()], truncation=True, max_length=seq_len)["input_ids"]
        found = [torch.tensor(ids) for ids in cut if len(ids) > 1]
        if not found:
            raise InputError(f"{what}: no text has two tokens or more; use more text")
    chosen = tokens.choose(found, n, seed)
    if len(chosen) < n:
        logger.info("%s: %d sequences asked for, the text has %d", what, n, len(chosen))
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


def tokenize(
    checkpoint: Path, model_fingerprint: str, spec: dict[str, Any], n: int, seed: int | None, what: str, path: str
) -> None:
    """Writes the sequences of a text spec (text, protocol, seq_len) by the checkpoint's tokenizer."""
    from transformers import AutoTokenizer

    texts = read_texts(spec["text"], spec["protocol"])
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    found = sequences(tokenizer, texts, spec["protocol"], spec["seq_len"], n, seed, what)
    check_fit(checkpoint, found, what)
    record = {"spec": spec, "model_fingerprint": model_fingerprint, "versions": versions()}
    mark = tokens.save(path, found, record)
    logger.info("%s: %d sequences, %d tokens, fingerprint %s", what, len(found), sum(map(len, found)), mark)
