"""Paths hold from the file that names them; a text may stand where it is used."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from quant.errors import InputError
from quant.workflow import configuration, paths


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Snakemake runs; experiments/ and a home beside it, with a file each of the same name."""
    for folder in ("work/experiments", "home", "other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.txt").write_text("words")
    (tmp_path / "work/here.txt").write_text("words")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def anchored(config: dict[str, Any], **files: Any) -> dict[str, Any]:
    """The configuration, merged from files under experiments/."""
    written = []
    for name, content in files.items():
        written.append(Path.cwd() / f"experiments/{name}.yaml")
        written[-1].write_text(yaml.safe_dump(content))
    return paths.anchored(config, written, read)


def texts(path: str) -> dict[str, Any]:
    return {"texts": {"t": {"files": [path]}}}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a.txt", "experiments/a.txt"),
        ("./a.txt", "experiments/a.txt"),
        ("../here.txt", "here.txt"),
        ("here.txt", "here.txt"),  # not beside the file, but where Snakemake runs
        ("none.txt", "experiments/none.txt"),
        ("../../other/a.txt", "{root}/other/a.txt"),
        ("~/a.txt", "{root}/home/a.txt"),
        ("{root}/other/a.txt", "{root}/other/a.txt"),
        ("{root}/work/here.txt", "here.txt"),
        ("~nobody-of-that-name/a.txt", "experiments/~nobody-of-that-name/a.txt"),
    ],
)
def test_a_files_paths_are_its_own(place: Path, written: str, expected: str) -> None:
    config = texts(written.format(root=place))
    assert anchored(config, mine=config)["texts"]["t"]["files"] == [expected.format(root=place)]
    assert config == texts(written.format(root=place)), "the argument stays"


def test_the_last_file_that_says_it_counts_and_the_command_line_is_here(place: Path) -> None:
    (place / "work/a.txt").write_text("words")
    late = place / "other/late.yaml"
    late.write_text(yaml.safe_dump(texts("a.txt")))
    early = place / "work/experiments/early.yaml"
    early.write_text(yaml.safe_dump(texts("a.txt")))
    assert paths.anchored(texts("a.txt"), [early, late], read) == texts(f"{place}/other/a.txt")
    assert paths.anchored(texts("a.txt"), [late, early], read) == texts("experiments/a.txt")
    assert paths.anchored(texts("./a.txt"), [late, early], read) == texts("a.txt")


def test_every_key_that_holds_a_path(place: Path) -> None:
    config = {
        "models": {"d": {"source": {"directory": "m"}}, "g": {"source": {"gguf": {"path": "m.gguf"}}}},
        "texts": {"t": {"files": ["a.txt", "~/a.txt"]}, "h": {"hub": {"path": "owner/name"}}},
        "calibration": {"text": {"files": ["a.txt"]}},
        "datasets": {"x": {"text": {"hub": {"path": "./rows"}}}, "y": {"text": "t"}},
    }
    found = anchored(config, mine=config)
    assert found["models"]["d"]["source"] == {"directory": "experiments/m"}
    assert found["models"]["g"]["source"] == {"gguf": {"path": "experiments/m.gguf"}}
    assert found["texts"] == {"t": {"files": ["experiments/a.txt", f"{place}/home/a.txt"]}, "h": config["texts"]["h"]}
    assert found["calibration"]["text"] == {"files": ["experiments/a.txt"]}
    assert found["datasets"] == {"x": {"text": {"hub": {"path": "experiments/rows"}}}, "y": {"text": "t"}}


def test_a_path_in_a_texts_place(place: Path) -> None:
    config = {"texts": {"a.txt": {"pydoc_topics": "heldout"}}, "calibration": {"text": "here.txt"}}
    found = anchored(config | {"datasets": {"x": {"text": "a.txt"}}})
    assert found["calibration"]["text"] == {"files": ["here.txt"]}
    assert found["datasets"]["x"]["text"] == "a.txt", "an entry of texts is meant first"
    with pytest.raises(InputError, match=r"calibration\.text: none\.txt: no such file, and no entry of texts"):
        anchored({"texts": {}, "calibration": {"text": "none.txt"}})
    (place / "work/many").mkdir()
    with pytest.raises(InputError, match=r"calibration\.text: many: is a directory; give a text file, or the name of"):
        anchored({"texts": {}, "calibration": {"text": "./many"}})
    misspelt = {"texts": {}, "calibration": {"text": "python_referenc"}}
    assert anchored(misspelt) == misspelt, "a name, which the texts' names are compared with"


def test_a_text_in_place_gets_the_places_name() -> None:
    text = {"files": ["a.txt"]}
    config = {"texts": {}, "calibration": {"text": text}, "datasets": {"x": {"text": text}, "y": {"text": "t"}}}
    found = paths.named_texts(config)
    assert found["texts"] == {"calibration.text": text, "datasets.x.text": text}
    assert found["calibration"]["text"] == "calibration.text" and found["datasets"]["y"]["text"] == "t"


@pytest.mark.parametrize("config", [{}, {"models": []}, {"models": {"m": None}, "texts": 3, "datasets": {"x": 1}}])
def test_what_the_schema_will_refuse_passes_through(config: dict[str, Any]) -> None:
    assert paths.named_texts(paths.anchored(config, [], read)) == config


@pytest.mark.parametrize(
    ("named", "refused"),
    [("a b", ""), ("a {b", ""), ("a {b} c", "{b}"), ("{model}", "{model}"), ("x {b, .*} y", "{b, .*}")],
)
def test_a_path_with_braces_works_or_is_refused_in_one_line(place: Path, named: str, refused: str) -> None:
    """`{model}` would become the model's name, and no file of that name need be there."""
    for folder in (f"m {named}", f"t {named}", f"g {named}"):
        Path(folder).mkdir()
    for file in (f"m {named}/config.json", f"t {named}/a.txt", f"g {named}/a.gguf"):
        Path(file).write_text("words")
    whole = {"source": {"directory": f"m {named}"}}
    study = {"models": ["m"], "datasets": ["d"]}
    texts = {
        "calibration": {"text": {"pydoc_topics": "calibration"}},
        "datasets": {"d": {"text": {"files": ["a.txt"]}}},
    }
    Path("a.txt").write_text("words")
    for where, changes in {
        f"models.m: m {named}/config.json": {"models": {"m": whole}},
        f"models.m: g {named}/a.gguf": {"models": {"m": {"source": {"gguf": {"path": f"g {named}/a.gguf"}}}}},
        f"datasets.d.text: t {named}/a.txt": {
            "models": {"m": {"source": {"hub": {"id": "o/n"}}}},
            "datasets": {"d": {"text": {"files": [f"t {named}/a.txt"]}}},
        },
    }.items():
        config = {"study": study, "environments": {}, **texts, **changes}
        if not refused:
            configuration.check_files(config)
            continue
        with pytest.raises(InputError) as caught:
            configuration.check_files(config)
        assert str(caught.value).startswith(f"{where}: Snakemake takes {refused} in a path for a wildcard; rename it")


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ({"directory": "d"}, "d", "datasets.x.text: d: is a directory; name a UTF-8 text file"),
        ({"directory": "d"}, "none", "datasets.x.text: none: no such file; name a UTF-8 text file"),
        ({"directory": "a"}, "a", "models.m: a: is a file; give the path of a model directory"),
        ({"gguf": {"path": "d"}}, "a", "models.m: d: is a directory; give the path of a GGUF file"),
        ({"gguf": {"path": "none"}}, "a", "models.m: none: no such file; give the path of a GGUF file"),
        (
            {"directory": "d"},
            "large",
            "large: has 200 MB, and a text is read whole, so that 100 are taken at most; a study reads about 1 MB of "
            "it: give a part (head -n 20000 FILE > PART)",
        ),
    ],
)
def test_what_stands_where_something_else_is_due_is_said(
    place: Path, source: dict[str, Any], text: str, expected: str
) -> None:
    Path("d").mkdir()
    Path("a").write_text("words")
    with Path("large").open("wb") as file:
        file.truncate(200_000_000)
    config = {"study": {"models": ["m"], "datasets": ["x"]}, "models": {"m": {"source": source}}, "environments": {}}
    there = {"calibration": {"text": {}}, "datasets": {"x": {"text": {"files": [text]}}}}
    with pytest.raises(InputError) as caught:
        configuration.check_files(config | there)
    assert str(caught.value) == expected


def test_what_cannot_be_read_or_written_is_said_before_anything_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may do anything may read and write what others may not: the answer is given in the system's place."""
    closed = {"m/config.json"}
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) not in closed)
    Path("m").mkdir()
    for file in ("m/config.json", "a.txt"):
        Path(file).write_text("{}")
    config = {"study": {"models": ["m"], "datasets": []}, "models": {"m": {"source": {"directory": "m"}}}}
    with pytest.raises(InputError, match=r"^models\.m: m/config\.json: cannot be read \(Permission denied\); chmod"):
        configuration.check_files({**config, "environments": {}, "calibration": {"text": {}}})
    paths.check_place(Path())
    closed.add("results")
    paths.check_place(Path())  # there is none yet
    Path("results").mkdir()
    with pytest.raises(InputError, match=r"/results: cannot be written; make it so, or run in another folder"):
        paths.check_place(Path())
    closed.add(".")
    with pytest.raises(InputError, match=r"/work: cannot be written"):
        paths.check_place(Path())
