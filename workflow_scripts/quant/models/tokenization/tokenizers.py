"""The tokenizer of a checkpoint: the ids that tokenizer.json gives, whatever class reads it.

transformers 5 builds some classes' tokenizers (LlamaTokenizer, GPT2Tokenizer, …) anew from the vocabulary and passes
over tokenizer.json's normalizer and pre-tokenizer. A checkpoint is therefore written with a class that takes
tokenizer.json as it is, and held against it on a text that shows the difference.
"""

import json
import logging
from pathlib import Path
from typing import Any

from quant.errors import InputError
from quant.files.artifacts import write_text
from quant.files.given import AGAIN, json_object
from quant.models.tokenization.gguf import surround
from quant.models.tokenization.sentencepiece import from_sentencepiece
from quant.runtime.importing import uncollected

logger = logging.getLogger("quant")

PROBE = (
    "In 1984 they paid 10 or 1,234,567.89 dollars (3107/2) for 100 x 12345678.\n"
    "  def f(x):\n\treturn x**2 != 0x1F  # 4 5\n\n\n1. One\r\n    two   three \n"
    "na\u00efve caf\u00e9 cafe\u0301 \u00c5ngstr\u00f6m \u00dcBER stra\u00dfe \u041f\u0440\u0438\u0432\u0435\u0442, "
    "\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f \u0645\u0631\u062d\u0628\u0627 \u0967\u0968\u0969\n"
    "it's WE'RE I'll don't \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u20ac5 \u00bd <b>{\"k\": [1, -2]}</b> "
    "http://a.b/c?d=e&f_g=%20 \u2026 \u2018q\u2019 \u00a0x\u2003y   "
)
CLASS = "PreTrainedTokenizerFast"  # takes tokenizer.json as it is, in transformers 4 and 5
OFFSET = ("sentencepiece.bpe.model", "spiece.model")  # each class counts their pieces in a way of its own
LEFT_OUT = ("auto_map", "name_or_path", "tokenizer_file", "vocab_file", "merges_file", "backend", "is_local",
             "add_bos_token", "add_eos_token")  # fmt: skip


def from_file(path: Path) -> Any:
    """tokenizer.json by the tokenizers library, nothing cut or padded; raises what the library raises."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def own_tokenizer(folder: Path, where: str) -> tuple[Any, dict[str, Any]] | None:
    """The tokenizer that a checkpoint's files hold, and the names of its special tokens where tokenizer_config.json may
    lack them; None where there is neither tokenizer.json nor tokenizer.model."""
    if (folder / "tokenizer.json").is_file():
        return from_file(folder / "tokenizer.json"), {}
    if (folder / "tokenizer.model").is_file():
        tokenizer, special = from_sentencepiece(folder / "tokenizer.model", where)
        path = folder / "tokenizer_config.json"
        if path.is_file() and json_object(path, AGAIN).get("add_bos_token") is False:
            surround(tokenizer, None, None)
        return tokenizer, special
    for name in OFFSET:
        if (folder / name).is_file():
            raise InputError(f"{where}: its {name} alone does not say the model's ids; put its tokenizer.json there")
    return None


def settle(folder: Path, tokenizer: Any, special: dict[str, Any], where: str) -> None:
    """Writes a tokenizer so that plain AutoTokenizer gives its ids, and says where it does not; config.json is there.

    BOS and EOS are put as the tokenizer puts them, whatever tokenizer_config.json says beside it (add_bos_token).
    special: what stands in tokenizer_config.json unless it says otherwise.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = folder / "tokenizer_config.json"
    settings = special | (json_object(path, AGAIN) if path.is_file() else {})
    before = settings.get("tokenizer_class")
    if before not in (None, CLASS, "TokenizersBackend"):
        logger.info("%s: tokenizer_class %s becomes %s, which takes tokenizer.json as it is", where, before, CLASS)
    settings = {key: value for key, value in settings.items() if key not in LEFT_OUT} | {"tokenizer_class": CLASS}
    tokenizer.save(str(folder / "tokenizer.json"))
    write_text(path, json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
    # with the added tokens that the settings name
    PreTrainedTokenizerFast.from_pretrained(folder).backend_tokenizer.save(str(folder / "tokenizer.json"))
    written = from_file(folder / "tokenizer.json")
    written.save(str(folder / "tokenizer.json"))
    if written.encode(PROBE, add_special_tokens=False).ids != tokenizer.encode(PROBE, add_special_tokens=False).ids:
        raise InputError(
            f"{where}: tokenizer_config.json adds tokens that the tokenizer lacks and that change its ids; save the "
            "tokenizer again with transformers"
        )
    found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if found(PROBE)["input_ids"] != written.encode(PROBE).ids:
        logger.warning(
            "%s: transformers' AutoTokenizer builds another tokenizer for this model_type than tokenizer.json holds;"
            " this workflow takes tokenizer.json's ids, and so does %s",
            where,
            CLASS,
        )


def load(folder: Path) -> Any:
    """A checkpoint's tokenizer by transformers, with tokenizer.json's ids."""
    with uncollected():
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
