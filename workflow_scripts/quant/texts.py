"""Text to calibrate and evaluate on, and how it becomes sequences of token ids."""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant import tokens
from quant.artifacts import versions
from quant.errors import InputError

logger = logging.getLogger("quant")

PARAGRAPH = 40  # characters; a shorter shared paragraph does not tie two topics together


def reference_topics() -> dict[str, str]:
    """The Python language reference by topic, from the standard library."""
    from pydoc_data.topics import topics

    return dict(topics)


def split_topics(topics: dict[str, str]) -> dict[str, list[str]]:
    """Topic names by part, `calibration` and `heldout`, in name order.

    Topics that share a paragraph go together, so no paragraph is in both parts; groups are dealt largest first, each to
    the part with less text so far.
    """
    group = {name: name for name in topics}

    def root(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    first: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            key = " ".join(paragraph.split())
            if len(key) >= PARAGRAPH:
                group[root(name)] = root(first.setdefault(key, name))
    members: dict[str, list[str]] = {}
    for name in sorted(topics):
        members.setdefault(root(name), []).append(name)
    parts: dict[str, list[str]] = {"calibration": [], "heldout": []}
    filled = {"calibration": 0, "heldout": 0}

    def size(names: list[str]) -> int:
        return sum(len(topics[name]) for name in names)

    for names in sorted(members.values(), key=lambda names: (-size(names), names)):
        part = min(parts, key=lambda part: (filled[part], part))
        parts[part] += names
        filled[part] += size(names)
    return {part: sorted(names) for part, names in parts.items()}


def read_hub(spec: dict[str, Any]) -> list[str]:
    """A column of a hub data set at a pinned revision."""
    from datasets import load_dataset

    try:
        rows = load_dataset(spec["path"], spec.get("name"), split=spec["split"], revision=spec["revision"])
    except Exception as error:  # the data set library wraps many kinds; each is the user's to mend
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"data set {spec['path']}: cannot be loaded ({type(error).__name__}: {reason}); give local text "
            f"instead (text: {{files: [PATH]}})"
        ) from None
    if spec["text_column"] not in rows.column_names:
        raise InputError(
            f"data set {spec['path']}: has no column {spec['text_column']}; choose one of "
            f"{', '.join(rows.column_names)}"
        )
    return list(rows[spec["text_column"]])


def read_texts(spec: dict[str, Any]) -> list[str]:
    """The texts of {"pydoc_topics": PART}, {"files": [PATH]} or {"hub": {…}}; empty ones are left out.

    A file's texts are its lines, as in WikiText's own rows.
    """
    if "pydoc_topics" in spec:
        topics = reference_topics()
        texts = [topics[name] for name in split_topics(topics)[spec["pydoc_topics"]]]
    elif "files" in spec:
        texts = []
        for path in spec["files"]:
            try:
                texts += Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror}); name a text file") from None
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    else:
        texts = read_hub(spec["hub"])
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


def tokenize(
    checkpoint: Path, model_fingerprint: str, spec: dict[str, Any], n: int, seed: int | None, what: str, path: str
) -> None:
    """Writes the sequences of a text spec (text, protocol, seq_len) by the checkpoint's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    found = sequences(tokenizer, read_texts(spec["text"]), spec["protocol"], spec["seq_len"], n, seed, what)
    record = {"spec": spec, "model_fingerprint": model_fingerprint, "versions": versions()}
    mark = tokens.save(path, found, record)
    logger.info("%s: %d sequences, %d tokens, fingerprint %s", what, len(found), sum(map(len, found)), mark)
