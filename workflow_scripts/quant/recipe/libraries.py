"""Libraries that quantise a model instead of a recipe: a table. Each runs in an environment of its own, which
envs/NAME.txt pins, by NAME_worker.py; quant/methods/libraries/NAME.py says what it takes and reads what it leaves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quant.recipe.key import Key


@dataclass(frozen=True)
class Library:
    """title: as it writes itself; package: its distribution, of this version; module: what is imported; words: what the
    method is; keys: those of its entry beside algorithm, n_calib and seed; draws: whether it draws by the seed."""

    title: str
    package: str
    version: str
    module: str
    words: str
    keys: Mapping[str, Key]
    draws: bool = False


BITS = "bits of a code"
GROUP = "inputs that share a range; it divides the model's inputs"
SYMMETRIC = "true: codes about 0; false: a range with a zero point"

# by `algorithm:`
LIBRARIES: dict[str, Library] = {
    "autoawq": Library(
        "AutoAWQ",
        "autoawq",
        "0.2.9",
        "awq",
        "4 bits, ranges with a zero point",
        {
            "bits": Key(4, BITS, (4,)),
            "group_size": Key(128, GROUP, minimum=1),
            "clip": Key(True, "true: shrink each range to where its error is least"),
        },
    ),
    "autoround": Library(
        "AutoRound",
        "auto-round",
        "0.16.1",
        "auto_round",
        "rounding and ranges tuned block by block by signed gradients",
        {
            "bits": Key(4, BITS, (2, 3, 4, 8)),
            "group_size": Key(128, GROUP, minimum=1),
            "symmetric": Key(False, SYMMETRIC),
            "iterations": Key(200, "steps of a block (its iters)", minimum=1),
            "rate": Key(0.0, "of a step (its lr); 0: 1/iterations", minimum=0, maximum=1),
            "batch": Key(8, "sequences a step (its batch_size)", minimum=1),
            "extension": Key(
                False, "true: its version 2 (its enable_alg_ext): scales searched by the inputs, outliers left out of "
                "the loss under 4 bits", when=("symmetric", (True,))
            ),
        },
        draws=True,
    ),
    "llmcompressor": Library(
        "llm-compressor",
        "llmcompressor",
        "0.14.0.1",
        "llmcompressor",
        "its GPTQ, block by block on the quantised model's inputs",
        {
            "bits": Key(4, BITS, (4, 8)),
            "group_size": Key(128, GROUP, minimum=1),
            "symmetric": Key(False, SYMMETRIC),
            "damp": Key(0.01, "its dampening_frac, of the second moment's mean diagonal", above=0, maximum=1),
            "act_order": Key("static", "its actorder", ("static", "none")),
        },
    ),
}  # fmt: skip


def library_of(recipe: Mapping[str, Any]) -> Library | None:
    """The library that a method is; None where it is a recipe."""
    return LIBRARIES[recipe["algorithm"]] if "algorithm" in recipe else None


def module_of(algorithm: str) -> str:
    """The module that knows a library."""
    return f"quant.methods.libraries.{algorithm}"
