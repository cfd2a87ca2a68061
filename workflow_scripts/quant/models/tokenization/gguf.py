"""A GGUF file's tokenizer as one of the tokenizers library, with llama.cpp's ids.

`tokenizer.ggml.model` gpt2 is byte-level BPE whose words `tokenizer.ggml.pre` splits; llama is SentencePiece's BPE:
pieces with scores and no merges, words joined by U+2581, bytes for what has no piece. transformers' own reader takes no
`tokenizer.ggml.pre`, and orders merges and splits a SentencePiece text otherwise.
"""

from typing import Any

from quant.errors import InputError
from quant.models.tokenization.gguf_pretokenizers import RULES, pre_tokenizer

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6  # tokenizer.ggml.token_type
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
IDS = {  # the name of a special token, and of the key that holds its id
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
SPM_IDS = {"bos_token": 1, "eos_token": 2, "unk_token": 0}  # where the file gives none


def merges_by_score(pieces: dict[str, float]) -> list[tuple[str, str]]:
    """The merges of SentencePiece's BPE, first the pair whose piece has the highest score.

    pieces: those that may be merged into. Of one piece's pairs the one with the shorter left part is first, as it is
    further left in a run of one character.
    """
    pairs: list[tuple[float, int, str, str]] = []
    for piece, score in pieces.items():
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in pieces and right in pieces:
                pairs.append((-score, len(pairs), left, right))
    return [(left, right) for _, _, left, right in sorted(pairs)]


def vocabulary(tokens: list[str], where: str) -> dict[str, int]:
    """Ids by token; refuses one that is there twice."""
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if token in ids:
            raise InputError(
                f"{where}: its vocabulary has {token!r} twice (ids {ids[token]} and {index}), which llama.cpp refuses "
                "too; convert the model again"
            )
        ids[token] = index
    return ids


def add_special(tokenizer: Any, tokens: list[str], kinds: list[int]) -> None:
    """Control tokens as special ones, and user-defined ones, which any text may hold."""
    from tokenizers import AddedToken

    for wanted in (True, False):
        found = {UNKNOWN, CONTROL} if wanted else {USER_DEFINED}
        added = [
            AddedToken(token, normalized=False, special=wanted)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in found
        ]
        (tokenizer.add_special_tokens if wanted else tokenizer.add_tokens)(added)


def surround(tokenizer: Any, first: str | None, last: str | None) -> None:
    """Puts BOS before every text and EOS behind it, where given."""
    from tokenizers import processors

    parts = [part for part in (first, "$A", last) if part]
    known = [(token, tokenizer.token_to_id(token)) for token in (first, last) if token]
    second = [part.replace("$A", "$B") + ":1" for part in parts]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(parts), pair=" ".join([*parts, *second]), special_tokens=known
    )


def byte_level(tokens: list[str], kinds: list[int], merges: list[str], pre: str, where: str) -> Any:
    """Byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models

    if pre not in RULES:
        raise InputError(
            f"{where}: tokenizer.ggml.pre is {pre!r}, whose rule models/tokenization/gguf_pretokenizers.py does not "
            "have; give this model as safetensors (source: {directory: PATH})"
        )
    ids = vocabulary(tokens, where)
    # at the first space that is not the first character
    cut = [(merge[:at], merge[at + 1 :]) for merge in merges if (at := merge.find(" ", 1)) > 0]
    pairs = [pair for pair in cut if pair[0] in ids and pair[1] in ids and "".join(pair) in ids]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=pairs, ignore_merges=RULES[pre].whole))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer(RULES[pre]), decoders.ByteLevel()
    add_special(tokenizer, tokens, kinds)
    return tokenizer


def sentencepiece(
    tokens: list[str], kinds: list[int], scores: list[float], unknown: str | None, prefix: bool, where: str
) -> Any:
    """SentencePiece's BPE; prefix: a text, and what follows a special token, begins with a space."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    ids = vocabulary(tokens, where)
    apart = {UNKNOWN, CONTROL, BYTE}
    pieces = {token: score for token, score, kind in zip(tokens, scores, kinds, strict=True) if kind not in apart}
    tokenizer = Tokenizer(
        models.BPE(vocab=ids, merges=merges_by_score(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefix else back)
    add_special(tokenizer, tokens, kinds)
    return tokenizer


def from_gguf(reader: Any, where: str) -> tuple[Any, dict[str, Any]]:
    """A GGUF reader's tokenizer, and what tokenizer_config.json says beside it."""

    def read(key: str, otherwise: Any = None) -> Any:
        field = reader.fields.get(f"tokenizer.{key}")
        return otherwise if field is None else field.contents()

    kind, tokens = read("ggml.model"), read("ggml.tokens")
    if kind not in ("gpt2", "llama") or not tokens:
        raise InputError(
            f"{where}: tokenizer.ggml.model is {kind!r}, and this reader knows gpt2 (byte-level BPE) and llama "
            "(SentencePiece's BPE); give this model as safetensors (source: {directory: PATH})"
        )
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
    kinds = read("ggml.token_type") or [1] * len(tokens)
    defaults = SPM_IDS if kind == "llama" else {}
    ids = {name: read(f"ggml.{key}", defaults.get(name)) for name, key in IDS.items()}
    special = {name: tokens[index] for name, index in ids.items() if index is not None and index < len(tokens)}
    if kind == "gpt2":
        pre = read("ggml.pre", "default")
        tokenizer = byte_level(tokens, kinds, read("ggml.merges", []), pre, where)
        bos = RULES[pre].bos
    else:
        scores = read("ggml.scores")
        if scores is None:
            raise InputError(f"{where}: its SentencePiece tokenizer has no scores (tokenizer.ggml.scores)")
        prefix = read("ggml.add_space_prefix", True)
        tokenizer = sentencepiece(tokens, kinds, scores, special.get("unk_token"), prefix, where)
        bos = True
    first, last = read("ggml.add_bos_token", bos), read("ggml.add_eos_token", False)
    surround(tokenizer, special.get("bos_token") if first else None, special.get("eos_token") if last else None)
    settings = {"clean_up_tokenization_spaces": False, **special}
    template = read("chat_template")
    return tokenizer, settings if template is None else settings | {"chat_template": template}
