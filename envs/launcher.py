"""The command `snakemake` of .venv: Snakemake's own, after a target that stands behind an option is put in front.

Snakemake 9.27 takes what follows an option with several values for one more of them, so that
`snakemake --cores 1 --resources gpu=1 results/report.html` ends in a ValueError. Targets move; nothing else does.
"""

import argparse
import contextlib
import re
import sys
from pathlib import Path

PAIR = re.compile(r"[^/=]+=")  # gpu=1, quantize:mem_mb=500, study={…}; results/a=b is a file
NUMBER = re.compile(r"-\d+|-\d*\.\d+")  # argparse takes these for values
CONFIG_FILES = (".yaml", ".yml", ".json")
MADE = "results"  # the folder of all that the workflow makes, files that end in .json among them


class UnknownOptionError(Exception):
    """An option that Snakemake does not have, or an abbreviation of several."""


def option_of(token: str, table: dict[str, argparse.Action]) -> tuple[argparse.Action, bool] | None:
    """The option that a token is, and whether its value is attached (--opt=value, -j4); None where it is a value."""
    if token in table:
        return table[token], False
    if not token.startswith("-") or token == "-" or NUMBER.fullmatch(token) or " " in token.partition("=")[0]:
        return None
    name, equals, _ = token.partition("=")
    if token.startswith("--"):
        exact = {id(table[name]): table[name]} if name in table else {}
        meant = exact or {id(action): action for option, action in table.items() if option.startswith(name)}
        if len(meant) != 1:
            raise UnknownOptionError(token)
        return meant.popitem()[1], bool(equals)
    action = table.get(token[:2])
    if action is None:
        raise UnknownOptionError(token)
    # flags may be joined: -np, -nj4
    return option_of(f"-{token[2:]}", table) if action.nargs == 0 else (action, True)


def belongs(action: argparse.Action, value: str, first: str) -> bool:
    """Whether a word can be an option's value; first: the first word behind the option."""
    if action.choices is not None:
        return value in map(str, action.choices)
    if action.dest == "configfile":
        there = Path(value).exists() and not Path(value).is_dir()
        return (there or value.endswith(CONFIG_FILES)) and Path(value).parts[:1] != (MADE,)
    if told_apart(action, [first]):
        return bool(PAIR.match(value))
    return "/" in first or "/" not in value


def told_apart(action: argparse.Action, words: list[str]) -> bool:
    """Whether an option's values can be told from targets; rules and paths, which --until and others take, cannot."""
    pairs = "=" in str(action.metavar) or any(map(PAIR.match, words[:1]))
    return pairs or action.choices is not None or action.dest == "configfile"


def own_values(action: argparse.Action, words: list[str]) -> int:
    """How many of the words behind an option are its own; the others are targets."""
    if action.nargs is None or isinstance(action.nargs, int):
        return min(1 if action.nargs is None else action.nargs, len(words))
    least = 1 if action.nargs == "+" else 0
    most = 1 if action.nargs == "?" else len(words)
    return next((i for i, word in enumerate(words[:most]) if i >= least and not belongs(action, word, words[0])), most)


def targets_first(arguments: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """The arguments, their targets in front or behind `--`; as they are where argparse finds all of its targets.

    Of `--until RULE PATH` only the user knows whether PATH is the target or one more end: it is the target where the
    command names no other. Of words of one sort (`--forcerun PATH PATH`) nobody can tell: they stay.
    """
    table = parser._option_string_actions  # argparse has no public way to ask
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = {i: found for i in range(end) if (found := option_of(arguments[i], table))}
    first = next(iter(options), end)
    targets, unsure, swallowed = list(range(first)), [], False
    for at, (action, attached) in options.items():
        words = arguments[at + 1 : next((i for i in options if i > at), end)]
        own = 0 if attached else own_values(action, words)
        others = range(at + 1 + own, at + 1 + len(words))
        several = not attached and action.nargs in ("*", "+")
        sure = not several or told_apart(action, words)
        (targets if sure else unsure).extend(others)
        swallowed |= sure and bool(others) and (several or (action.nargs == "?" and own == 0))
    behind = arguments[end + 1 :]
    if unsure and not targets and not behind:
        targets, swallowed = unsure, True
    together = not targets or (targets[-1] - targets[0] < len(targets) and not behind)
    if together and not swallowed:
        return arguments
    moved = [arguments[i] for i in targets]
    rest = [arguments[i] for i in range(end) if i not in targets]
    return [*rest, "--", *moved, *behind] if end < len(arguments) else [*moved, *rest]


def missing(arguments: list[str], parser: argparse.ArgumentParser) -> str | None:
    """A configuration file that is named and is no file, which Snakemake would say in a traceback."""
    table = parser._option_string_actions
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = {i: found for i in range(end) if (found := option_of(arguments[i], table))}
    for at, (action, attached) in options.items():
        if action.dest != "configfile":
            continue
        words = arguments[at + 1 : next((i for i in options if i > at), end)]
        named = [arguments[at].partition("=")[2]] if attached else words[: own_values(action, words)]
        if found := next((name for name in named if Path(name).is_dir() or not Path(name).exists()), None):
            return found
    return None


def main() -> None:
    from snakemake import cli

    with contextlib.suppress(UnknownOptionError):  # Snakemake says so
        parser = cli.get_argument_parser()
        sys.argv[1:] = targets_first(sys.argv[1:], parser)
        if name := missing(sys.argv[1:], parser):
            sys.exit(
                f"{name}: {'is a directory' if Path(name).is_dir() else 'no such file'}; name a configuration file"
            )
    cli.main()


if __name__ == "__main__":
    main()
