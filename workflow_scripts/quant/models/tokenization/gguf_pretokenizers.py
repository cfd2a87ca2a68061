"""How llama.cpp splits text before a byte-level BPE, by what a GGUF file's `tokenizer.ggml.pre` says.

Source: llm_tokenizer_bpe and llama_vocab::impl::load in llama.cpp's src/llama-vocab.cpp. Several expressions split one
after the other, each what the one before it left whole.
"""

from typing import Any, NamedTuple

# the apostrophes of English, in either case
_ENDINGS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_DIGITS_3 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_DIGITS_1 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_MARKS = (
    _ENDINGS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES
)  # letters with their marks
_WORDS = r" ?[^(\s|.,!?…。，、।۔،)]+"
_UPPER, _LOWER = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
_START = r"[^\r\n\p{L}\p{N}]?"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
_TEKKEN = f"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|" + r"\p{N}|" + _REST
_GPT4O = f"{_START}{_UPPER}*{_LOWER}+{_ENDINGS}?|{_START}{_UPPER}+{_LOWER}*{_ENDINGS}?|" + r"\p{N}{1,3}|" + _REST
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + _SPACES
)
_CHINESE = r"[一-龥\u0800-一가-\ud7ff]+"


class Rule(NamedTuple):
    """expressions, in order; whole: a word that is a token is one, whatever the merges say; bos: put unless the file
    says otherwise."""

    expressions: tuple[str, ...]
    whole: bool = False
    bos: bool = False


_LLAMA3 = Rule((_DIGITS_3,), whole=True, bos=True)
_DIGITS_GPT2 = Rule((r"\p{N}", _GPT2))
RULES: dict[str, Rule] = {  # the most usual name of a rule first
    "gpt-2": Rule((_GPT2,)),
    "smollm": _DIGITS_GPT2,
    "llama-bpe": _LLAMA3,
    "dbrx": Rule((_DIGITS_3,)),
    "qwen2": Rule((_DIGITS_1,)),
    "tekken": Rule((_TEKKEN,), whole=True, bos=True),
    "gpt-4o": Rule((_GPT4O,)),
    "deepseek-v3": Rule((r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)),
    "deepseek-coder": Rule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE, r"\p{N}")),
    "falcon": Rule((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "qwen35": Rule((_MARKS,)),
    "bloom": Rule((_WORDS,)),
    "viking": Rule((_WORDS, r"\p{N}")),
    "bailingmoe": Rule(
        (
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "seed-coder": Rule((_ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|" + _SPACES,)),
    "default": Rule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}
SAME = {
    "gpt-2": (
        "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "jina-v1-en", "jina-v2-code", "roberta-bpe",
        "gigachat", "a.x-4.0", "mellum", "modern-bert", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4",
    ),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    "dbrx": ("smaug-bpe", "chatglm-bpe", "glm4"),
    "qwen2": (
        "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "hunyuan", "solar-open", "megrez", "grok-2",
    ),
    "gpt-4o": ("llama4", "kanana2", "talkie", "minimax-m2"),
    "deepseek-v3": ("hunyuan-dense", "joyai-llm", "hy_v4"),
    "bloom": ("poro-chat", "gpt3-finnish"),
    "bailingmoe": ("bailingmoe2", "llada-moe"),
}  # fmt: skip
RULES |= {other: RULES[name] for name, others in SAME.items() for other in others}


def pre_tokenizer(rule: Rule) -> Any:
    """A rule as a pre-tokenizer of the tokenizers library."""
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in rule.expressions]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
