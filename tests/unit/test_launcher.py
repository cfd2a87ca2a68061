"""The launcher against Snakemake's own parser: targets move in front, everything else stays as it was."""

import importlib.util
import re
import shlex
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snakemake.cli import get_argument_parser

PATH = Path(__file__).parents[2] / "envs/launcher.py"
PARSER = get_argument_parser()


def load() -> object:
    specification = importlib.util.spec_from_file_location("launcher", PATH)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


LAUNCHER = load()
REPORT = "results/report.html"


def moved(line: str) -> str:
    return shlex.join(LAUNCHER.targets_first(shlex.split(line), PARSER))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"--cores 1 --resources gpu=1 {REPORT}", f"{REPORT} --cores 1 --resources gpu=1"),
        (f"--configfile a.yaml {REPORT} -c1", f"{REPORT} --configfile a.yaml -c1"),
        ("--configfile a.yaml b.json results/best/choice.json", "results/best/choice.json --configfile a.yaml b.json"),
        ("--configfile a.yaml report", "report --configfile a.yaml"),
        (f"--until evaluate {REPORT}", f"{REPORT} --until evaluate"),
        (f"--until evaluate quantize {REPORT}", f"{REPORT} --until evaluate quantize"),
        (f"-npR quantize {REPORT}", f"{REPORT} -npR quantize"),
        (f"--set-threads quantize=2 evaluate=1 {REPORT}", f"{REPORT} --set-threads quantize=2 evaluate=1"),
        (f"--set-resources quantize:mem_mb=9 {REPORT}", f"{REPORT} --set-resources quantize:mem_mb=9"),
        (f"--groups plot=tables {REPORT}", f"{REPORT} --groups plot=tables"),
        (f"--config seed=1 {REPORT} all", f"{REPORT} all --config seed=1"),
        ("--config 'study={methods: [a/b]}' results/a=b", "results/a=b --config 'study={methods: [a/b]}'"),
        (f"--default-resources {REPORT}", f"{REPORT} --default-resources"),
        (f"--quiet {REPORT}", f"{REPORT} --quiet"),
        (f"-q rules {REPORT}", f"{REPORT} -q rules"),
        (f"--rerun-triggers mtime input {REPORT}", f"{REPORT} --rerun-triggers mtime input"),
        (f"--dag {REPORT}", f"{REPORT} --dag"),
        # an abbreviation, several targets in several places
        ("-n a -c 2 --res gpu=1 mem_mb=2 results/b all", "a results/b all -n -c 2 --res gpu=1 mem_mb=2"),
        ("a --cores 1 --nolock b", "a b --cores 1 --nolock"),
        # behind -- everything is a target, so the others join them
        (f"--resources gpu=1 {REPORT} -- -odd", f"--resources gpu=1 -- {REPORT} -odd"),
        ("a --cores 1 -- b", "--cores 1 -- a b"),
    ],
)
def test_targets_go_in_front(line: str, expected: str) -> None:
    assert moved(line) == expected
    assert moved(expected) == expected
    PARSER.parse_args(shlex.split(expected))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--version",
        f"{REPORT} --cores 1 --resources gpu=1",
        f"--cores 1 {REPORT} --resources gpu=1",
        f"--cores 1 -n {REPORT}",
        f"--resources=gpu=1 {REPORT}",
        f"-Ua {REPORT}",
        "--cores -1 all",
        # another target is named: the user may mean both as ends, or as forced
        f"all --until evaluate {REPORT}",
        f"--until evaluate {REPORT} -- all",
        # words of one sort
        "--forcerun quantize all",
        "--forcerun results/a results/b",
        "--cleanup-metadata results/a results/b",
        # one value, whatever it is
        f"--report page.html {REPORT}",
        "--report results/page.html",
        # nothing that Snakemake would take: its own message is the best
        f"--resources {REPORT}",
        "--configfile results/a.yaml",
        "--resources gpu=1 -- a",
        # a job's own command
        "--target-jobs quantize:model=tiny,method=a --allowed-rules quantize --cores 1",
    ],
)
def test_nothing_to_move(line: str) -> None:
    assert moved(line) == shlex.join(shlex.split(line))


@pytest.mark.parametrize("option", ["--bogus", "--con", "-Z"])
def test_an_option_that_is_none_is_snakemakes_to_refuse(option: str) -> None:
    with pytest.raises(LAUNCHER.UnknownOptionError):
        moved(f"{option} 1 --resources gpu=1 {REPORT}")


def test_a_file_that_is_there_is_a_configuration_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.conf").touch()
    (tmp_path / "results").mkdir()
    (tmp_path / "results/made.json").touch()
    assert moved("--configfile a.yaml mine.conf results results/made.json") == (
        "results results/made.json --configfile a.yaml mine.conf"
    )


# --- any command line

TARGETS = st.lists(st.sampled_from([REPORT, "results/a=b.csv", "results/best/choice.json", "./results/x"]), max_size=2)
OPTIONS = st.sampled_from(
    [
        ["--cores", "1"],
        ["-j2"],
        ["-n"],
        ["-nk"],
        ["--nolock"],
        ["--directory", "elsewhere"],
        ["--snakefile=Snakefile"],
        ["--resources", "gpu=1"],
        ["--res", "gpu=1", "mem_mb=2"],
        ["--resources=gpu=1"],
        ["--configfile", "a.yaml"],
        ["--configfiles", "a.yaml", "b.json"],
        ["--config", "a_b={c: 1}"],
        ["-C", "ab=1", "cd=x/y"],
        ["-Cab=1"],
        ["--set-threads", "quantize=2"],
        ["--set-resources", "quantize:mem_mb=2", "plot:runtime=3"],
        ["--default-resources"],
        ["--quiet"],
        ["--quiet", "all"],
        ["--rerun-triggers", "mtime", "code"],
        ["--lint", "json"],
        ["--rulegraph"],
        ["--profile", "none"],
    ]
)
ENDS = st.sampled_from([[], ["--until", "evaluate"], ["-R", "quantize", "plot"], ["--omit-from", "plot"]])


def parsed(arguments: list[str]) -> tuple[list[str], dict[str, object]]:
    values = vars(PARSER.parse_args(arguments))
    return list(values.pop("targets")), {
        key: re.sub(" at 0x[0-9a-f]+", "", repr(value)) for key, value in values.items()
    }


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(OPTIONS, TARGETS), max_size=5), TARGETS, ENDS, TARGETS, st.lists(st.just("-x"), max_size=1))
def test_any_command_line(
    middle: list[tuple[list[str], list[str]]], before: list[str], end: list[str], after: list[str], behind: list[str]
) -> None:
    """All words are still there, the rest in its order; Snakemake finds every target and the same options."""
    pieces = [([], before), *middle, (end, after if not end else [])]
    line = [word for option, targets in pieces for word in (*option, *targets)] + ["--"] * bool(behind) + behind
    targets = [word for _, some in pieces for word in some]
    options = [word for option, _ in pieces for word in option]
    result = LAUNCHER.targets_first(line, PARSER)
    assert Counter(result) == Counter(line)
    assert [word for word in result if word in options] == options
    assert parsed(result) == (targets + behind, parsed(options)[1])


def test_every_option_with_several_values_is_known() -> None:
    """A target behind any of them is found, or is a word of the same sort."""
    for action in PARSER._actions:
        if action.nargs not in ("*", "+") or not action.option_strings:
            continue
        option = action.option_strings[0]
        value = "name" if action.choices is None else next(iter(action.choices), "name")
        value = "name=1" if "=" in str(action.metavar) else value
        assert moved(f"{option} {value} {REPORT}") == f"{REPORT} {option} {value}"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("-n --configfile none.yaml --cores 1", "none.yaml"),
        ("--configfile here.yaml none.yaml results/report.html", "none.yaml"),
        ("--configfile=none.yaml", "none.yaml"),
        ("--configfiles folder", "folder"),
        ("--configfile here.yaml results/report.html --until none.yaml", None),
        ("results/none.yaml --cores 1", None),
    ],
)
def test_a_configuration_file_that_is_none(
    line: str, found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.yaml").touch()
    (tmp_path / "folder").mkdir()
    assert LAUNCHER.missing(shlex.split(line), PARSER) == found
    if found:
        monkeypatch.setattr(sys, "argv", ["snakemake", *shlex.split(line)])
        with pytest.raises(SystemExit, match=f"^{found}: .*name a configuration file$"):
            LAUNCHER.main()
