"""The file that make writes its MODEL, TEXT and limits to, and goes on with."""

import json
import re
import resource
from pathlib import Path

import pytest
import yaml

from quant.errors import InputError
from quant.workflow import make_study
from quant.workflow.gguf_methods import GGUFS
from quant.workflow.make_study import WRITTEN
from tests.unit.workflow.configurations import DEFAULT
from tests.unit.workflow.made_studies import COMMIT, EXPERTS, loaded


def test_where_it_is_and_what_it_says(here: Path) -> None:
    given = {"MODEL": "My Model", "TEXT": "notes.txt", "SIZE_MB": ""}
    path = make_study.write(given, here, apart=False)
    assert path == here / "results/My-Model-notes.yaml"
    first, _, rest = path.read_text().partition("\n")
    assert first == "# written by make: MODEL=My Model TEXT=notes.txt"
    assert yaml.safe_load(rest) == make_study.study_of(given, DEFAULT, {})
    assert make_study.write(given, here / "apart", apart=True) == here / "apart/config.yaml"


def test_nothing_given(here: Path) -> None:
    assert make_study.write({"MODEL": ""}, here, apart=False) is None and not (here / "results").exists()
    assert make_study.write({}, here, apart=True) == here / "config.yaml"


def test_a_folders_study_goes_on(here: Path) -> None:
    for given in ({"MODEL": "My Model", "TEXT": "notes.txt"}, {"BITS": "4"}, {}):
        path = make_study.write(given, here, apart=True)
    config = yaml.safe_load(path.read_text())
    assert config == make_study.study_of({"MODEL": "My Model", "TEXT": "notes.txt", "BITS": "4"}, DEFAULT, {})


@pytest.mark.parametrize("last", [{"BITS": "3"}, {"SIZE_MB": "90"}, {"FILE": "gguf"}, {"FILE": "gguf", "SIZE_MB": "9"}])
def test_limits_are_one_wish(here: Path, last: dict[str, str]) -> None:
    """Said anew they replace those before, methods for them and all; a model or a text said anew leaves them."""
    first = {"MODEL": "My Model", "TEXT": "notes.txt"}
    for given in (
        {**first, "FILE": "gguf"},
        {"SIZE_MB": "20"},
        {"FILE": "gguf"},
        last,
        {"MODEL": "My Model"},
        first,
    ):
        config = yaml.safe_load(make_study.write(given, here, apart=True).read_text())
        found = loaded(config)["study"]
        limits = last if given.keys() <= first.keys() else given
        assert found["gguf"] == (list(GGUFS) if "FILE" in limits else [])
        assert ("within_size" in found["methods"]) == ("FILE" not in limits and "SIZE_MB" in limits)
    assert config == make_study.study_of({**first, **last}, DEFAULT, {})


@pytest.mark.parametrize(
    "limits",
    [{}, {"BITS": "3"}, {"BITS": "2"}, {"SIZE_MB": "9"}, {"FILE": "gguf"}, {"FILE": "gguf", "BITS": "3"}],
    ids=str,
)
def test_another_model_gets_methods_that_it_can_have(here: Path, limits: dict[str, str]) -> None:
    """Of a mixture, without zero points; what it leaves is as if all had been said at once."""
    (here / "mixture").mkdir()
    (here / "mixture/config.json").write_text(json.dumps(EXPERTS["mixture"]))
    make_study.write({"MODEL": "My Model", **limits}, here, apart=True)
    for model in ("mixture", "My Model", "mixture"):
        config = yaml.safe_load(make_study.write({"MODEL": model}, here, apart=True).read_text())
        due = make_study.study_of({"MODEL": model, **limits}, DEFAULT, {})
        assert [config[key] for key in ("study", "methods")] == [due[key] for key in ("study", "methods")]


def test_another_model_gets_scales_that_it_can_fold(here: Path) -> None:
    """And a list of methods that was written by hand stays."""
    for name, kind in (("gpt", "gpt2"), ("llama", "llama")):
        (here / name).mkdir()
        (here / name / "config.json").write_text(json.dumps({"model_type": kind}))
    for given in ({"MODEL": "gpt"}, {"BITS": "3"}, {"MODEL": "llama"}, {"MODEL": "gpt"}):
        path = make_study.write(given, here, apart=True)
        found = yaml.safe_load(path.read_text())["study"]
        assert (found.keys() >= {"methods", "task_methods"}) == (found["models"] == ["gpt"])
        assert path.read_text().count("# gptq_clip stands for") == (found["models"] == ["gpt"])
    config = yaml.safe_load(path.read_text())
    config["study"]["methods"] = ["rtn_g"]
    path.write_text(f"{WRITTEN}\n{yaml.safe_dump(config)}")
    for model in ("llama", "gpt"):
        found = yaml.safe_load(make_study.write({"MODEL": model}, here, apart=True).read_text())
        assert found["study"]["methods"] == ["rtn_g"]


def test_a_table_of_nothing_is_none(here: Path) -> None:
    (here / "config.yaml").write_text(f"{WRITTEN}\nstudy: {{add: , gguf: }}\nmodels:\nmethods:\n")
    config = yaml.safe_load(make_study.write({"BITS": "4"}, here, apart=True).read_text())
    assert config == {"choose": {"max_bits_per_weight": 4.5}, "study": {"add": {}}}


def test_what_was_written_by_hand_stays(here: Path) -> None:
    path = make_study.write({"MODEL": "My Model", "TEXT": "notes.txt", "FILE": "gguf"}, here, apart=True)
    config = yaml.safe_load(path.read_text())
    config["methods"]["mine"] = {"bits": 3}
    config["study"]["add"]["methods"].append("mine")
    config["calibration"]["n_calib"] = 7
    path.write_text(f"{WRITTEN}\n{yaml.safe_dump(config)}\ntexts:\n")
    make_study.write({"SIZE_MB": "20"}, here, apart=True)
    config = yaml.safe_load(path.read_text())
    assert list(config["methods"]) == ["mine", "within_size"] == config["study"]["add"]["methods"]
    assert config["calibration"]["n_calib"] == 7 and "gguf" not in config["study"]


def test_on_a_full_disk_it_stays_as_it_was(here: Path) -> None:
    path = make_study.write({"BITS": "4"}, here, apart=True)
    before, (soft, hard) = path.read_text(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, hard))
    try:
        with pytest.raises(InputError, match=r"/config\.yaml: cannot be written \(File too large\)"):
            make_study.write({"BITS": "3"}, here, apart=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == before and not [*here.glob(".*")]


def test_anothers_file_is_left_alone(here: Path) -> None:
    (here / "config.yaml").write_text("study: {}\n")
    with pytest.raises(InputError, match=r"config\.yaml: is no file that make wrote"):
        make_study.write({"BITS": "4"}, here, apart=True)
    assert make_study.write({}, here, apart=True) == here / "config.yaml"
    assert (here / "config.yaml").read_text() == "study: {}\n"


@pytest.mark.parametrize(
    ("folder", "content", "message"),
    [
        ("notes.txt", None, r"ERROR .*notes\.txt.*cannot be read or written"),
        ("broken", f"{WRITTEN} BITS=4\nchoose: {{\n", r"ERROR broken/config\.yaml: is no YAML"),
        ("odd", f"{WRITTEN} BITS=4\n# \udcff\n", r"ERROR odd/config\.yaml: is not UTF-8"),
        ("list", f"{WRITTEN} BITS=4\n[1]\n", r"ERROR list/config\.yaml: it is no table of names; mend it"),
        ("add", f"{WRITTEN} BITS=4\nstudy: {{add: [m]}}\n", r"ERROR add/config\.yaml: study\.add is no table"),
        ("one", f"{WRITTEN} BITS=4\nstudy: {{gguf: m}}\n", r"ERROR one/config\.yaml: study\.gguf is no list"),
    ],
)
def test_a_folder_that_takes_no_study(
    here: Path, folder: str, content: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content:
        (here / folder).mkdir()
        (here / folder / "config.yaml").write_text(content, encoding="utf-8", errors="surrogateescape")
    for key, value in {"IN": folder, "BITS": "4", "MODEL": "", "TEXT": "", "SIZE_MB": ""}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit) as caught:
        make_study.main()
    assert re.fullmatch(f"{message}[^\n]*", str(caught.value.code))


def test_what_a_study_of_other_models_loses_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "results").mkdir()
    (here / "results/summary.csv").write_text("model,method\nsmollm2-135m,original\nsmollm2-135m,rtn_g\n")
    make_study.write({"MODEL": "My Model"}, here, apart=False)
    said = capsys.readouterr().err
    assert "were of smollm2-135m and become those of My-Model" in said and "results/smollm2-135m" in said
    make_study.write({"BITS": "4"}, here, apart=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("apart", [True, False])
def test_what_another_model_of_the_same_name_replaces_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], apart: bool
) -> None:
    (here / "other/My Model").mkdir(parents=True)
    (here / "other/My Model/config.json").touch()
    record = here / "results/My-Model/original/convert.json"
    record.parent.mkdir(parents=True)
    for source, said in (
        ({"directory": str(here / "My Model")}, "My Model"),
        ({"hub": {"id": "o/My-Model", "revision": COMMIT}}, f"o/My-Model@{COMMIT}"),
        ({"gguf": {"path": "/x/My-Model.gguf"}}, "/x/My-Model.gguf"),
        ({"gguf": {"package": "p", "version": "1.0", "sha256": "0", "member": "m"}}, "p@1.0"),
    ):
        record.write_text(json.dumps({"source": source}))
        make_study.write({"MODEL": "other/My Model"}, here, apart)
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{said} and becomes that of {here}/other/My Model, which has the same name" in line
        assert line.startswith(f"{here}/results/My-Model was of ") and line.endswith("IN=FOLDER keeps a study apart")
    for text in (json.dumps({"source": {"directory": str(here / "other/My Model")}}), "{", "[]", '{"source": {}}'):
        record.write_text(text)
        make_study.write({"MODEL": "other/My Model", "BITS": "4"}, here, apart)
        assert capsys.readouterr().err == ""
