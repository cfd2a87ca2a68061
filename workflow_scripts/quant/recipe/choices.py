"""What a recipe may choose as salience, rounding and score: for each choice, the statistics that its function reads and
the keys that are its own.

The function of an entry `name` is `name` in quant/recipe/{saliences,roundings,scores}/name.py; its own keys are its
keyword-only arguments. A new choice is that function and an entry here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quant.recipe.key import Key
from quant.recipe.libraries import module_of

CHANNELS, MOMENT, RANDOM = "channels", "moment", "random"
SEARCH = (CHANNELS, MOMENT)  # what the search for a scale reads


@dataclass(frozen=True)
class Choice:
    """words: what it does. reads: of `channels` (per-channel means), `moment` (H) and `random` (numbers drawn by the
    recipe's seed). keys: parameters of its own, by name; a key that two choices share is one Key."""

    words: str
    reads: tuple[str, ...] = ()
    keys: Mapping[str, Key] = field(default_factory=dict)


NONE = Choice("nothing")

SALIENCES: dict[str, Choice] = {
    "none": NONE,
    "l1": Choice("E|x_j|, as AWQ", SEARCH),
    "l2": Choice("E[x_j²]", SEARCH),
    "praq": Choice("Σ_k E|SiLU(z_k)|·|W_kj| on MLP linears, E|x_j| on attention", SEARCH),
}

ROUNDINGS: dict[str, Choice] = {
    "nearest": Choice("the nearest grid point"),
    "greedy_flip": Choice(
        "nearest, some moved to the second-nearest so that each row's mean error shrinks",
        (CHANNELS,),
        {
            "outlier_percent": Key(
                0.05, "share of channels, of the largest mean, that flips leave out", minimum=0, below=1
            )
        },
    ),
    "gptq": Choice(
        "error feedback through the inverse factor of H",
        (MOMENT,),
        {"damp": Key(0.01, "GPTQ's damping in units of the second moment's mean diagonal", above=0, maximum=1)},
    ),
}

SCORES: dict[str, Choice] = {
    "none": NONE,
    "awq": Choice("E|z_k|", (CHANNELS,)),
    "praq": Choice(
        "E|z_k| + std z_k by the risk of passing the activation",
        (CHANNELS,),
        {
            "beta": Key(3.0, "steepness of PRAQ's risk", above=0),
            "tau": Key(-3.0, "threshold of PRAQ's risk"),
            "noise_factor": Key(0.2, "weight noise in PRAQ's score, in units of E|x|·mean|W|", minimum=0),
        },
    ),
}

# by the recipe's key: where the functions are, and which there are
CHOICES: dict[str, tuple[str, dict[str, Choice]]] = {
    "salience": ("saliences", SALIENCES),
    "rounding": ("roundings", ROUNDINGS),
    "keep": ("scores", SCORES),
}


def own_keys(key: str) -> dict[str, Key]:
    """The keys of all choices of salience, rounding or keep, each with the choices that read it as when it has an
    effect."""
    found: dict[str, Key] = {}
    readers: dict[str, list[str]] = {}
    for name, choice in CHOICES[key][1].items():
        for own, what in choice.keys.items():
            if found.setdefault(own, what) != what:
                raise ValueError(f"{key}: {own} of {name} differs from that of {readers[own][0]}")
            readers.setdefault(own, []).append(name)
    return {own: what.only_with(key, tuple(readers[own])) for own, what in found.items()}


def chosen(recipe: Mapping[str, Any]) -> list[Choice]:
    """The entries that a recipe names."""
    return [table[recipe[key]] for key, (_, table) in CHOICES.items()]


def modules(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules of the functions that a recipe's job finds by name; a library's."""
    if "algorithm" in recipe:
        return (module_of(recipe["algorithm"]),)
    return tuple(
        f"quant.recipe.{package}.{recipe[key]}" for key, (package, _) in CHOICES.items() if recipe[key] != "none"
    )
