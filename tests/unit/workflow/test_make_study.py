"""make's MODEL, TEXT, SIZE_MB and BITS as an experiment."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quant.errors import InputError
from quant.workflow import make_study
from quant.workflow.gguf_methods import GGUFS
from tests.unit.workflow.configurations import DEFAULT
from tests.unit.workflow.made_studies import COMMIT, EXPERTS, loaded, study

ADDED = {"add": {"methods": ["rtn_8bit"]}}
WITH_8_BITS = {"methods": {"rtn_8bit": {"bits": 8, "group_size": -1, "symmetric": True}}}


@pytest.mark.parametrize(
    ("model", "name", "source"),
    [
        ("My Model", "My-Model", {"directory": "{here}/My Model"}),
        ("~/My Model/", "My-Model", {"directory": "{here}/My Model"}),
        ("./model.Q4_0.gguf", "model.Q4_0", {"gguf": {"path": "{here}/model.Q4_0.gguf"}}),
        (f"owner/name@{COMMIT}", "name", {"hub": {"id": "owner/name", "revision": COMMIT}}),
        (f"gpt2@{COMMIT}", "gpt2", {"hub": {"id": "gpt2", "revision": COMMIT}}),
    ],
)
def test_a_model(here: Path, model: str, name: str, source: dict[str, Any]) -> None:
    found = study(MODEL=model)
    expected = json.loads(json.dumps(source).replace("{here}", str(here)))
    assert found == WITH_8_BITS | {"study": {"models": [name], **ADDED}, "models": {name: {"source": expected}}}
    config = loaded(found)
    assert config["study"]["models"] == [name] and "rtn_8bit" in config["study"]["methods"]


def test_a_model_of_config_yaml_by_name(here: Path) -> None:
    assert study(MODEL="smollm2-135m") == WITH_8_BITS | {"study": {"models": ["smollm2-135m"], **ADDED}}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./none", "MODEL=./none: no such directory or file"),
        (".", "MODEL=.: has no config.json; give a directory with"),
        ("/none/none", "no such directory or file"),
        ("a/b/c", "no such directory or file"),
        ("model.bin", "is a file and no GGUF"),
    ],
)
def test_a_model_that_is_none(here: Path, model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        study(MODEL=model)


def test_a_text_is_calibrated_and_evaluated_on(here: Path) -> None:
    found = study(TEXT="notes.txt")
    text = {"files": [str(here / "notes.txt")]}
    assert found["study"] == {"datasets": ["notes"]} and found["calibration"] == {"text": text}
    assert found["datasets"]["notes"] == DEFAULT["datasets"]["python_reference"] | {"text": text}
    config = loaded(found)
    assert config["calibration"]["text"] == text | {"part": "calibration"}
    assert config["datasets"]["notes"]["text"] == text | {"part": "heldout"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"TEXT=bad\.txt: no such file"),
        ("directory", r"TEXT=bad\.txt: is a directory; give a UTF-8 text file"),
        (b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", r"bad\.txt: is not UTF-8 text but a PDF file; save it as plain text"),
        (b"RIFF\n%\xe2\xe3\xcf\xd3\n", r"bad\.txt: is not UTF-8 text \(.* at byte 6\)"),
        ("Words. ".encode("utf-16"), r"bad\.txt: is not UTF-8 text but UTF-16; save it as UTF-8 \(iconv "),
        (b" \n", r"bad\.txt: holds no text"),
        (b"Too short. " * 20, r"TEXT=bad\.txt: 220 characters cannot be split"),
    ],
)
def test_a_text_that_is_none_is_refused_before_anything_runs(here: Path, content: Any, message: str) -> None:
    if content == "directory":
        (here / "bad.txt").mkdir()
    elif content is not None:
        (here / "bad.txt").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        study(TEXT="bad.txt")
    assert "\n" not in str(caught.value)


def test_a_text_of_json_lines(here: Path) -> None:
    lines = [json.dumps({"text": f"{i} and " * 20}) + "\n" for i in range(90)]
    (here / "rows.jsonl").write_text("".join(lines))
    assert study(TEXT="rows.jsonl")["study"] == {"datasets": ["rows"]}


@pytest.mark.parametrize(
    ("given", "choose"),
    [
        ({"SIZE_MB": "120"}, {"max_bits_per_weight": None, "max_size_mb": 120.0}),
        ({"BITS": "4"}, {"max_bits_per_weight": 4.5}),
        ({"BITS": "4.3"}, {"max_bits_per_weight": 4.3}),
        ({"BITS": "3", "SIZE_MB": "1e3"}, {"max_bits_per_weight": 3.5, "max_size_mb": 1000.0}),
    ],
)
def test_limits(given: dict[str, str], choose: dict[str, Any]) -> None:
    found = study(**given)
    assert found["choose"] == choose and choose.items() <= loaded(found)["choose"].items()
    if "max_size_mb" not in choose:
        assert set(found) == {"choose"}
        return
    config = loaded(found)
    budget = {"size_mb": choose["max_size_mb"], "bits_per_weight": choose["max_bits_per_weight"] or 0.0}
    assert config["methods"]["within_size"]["budget"] == budget
    ends = {"bits": 8, "group_size": -1, "format": "int", "needed": False}
    assert config["methods"]["within_size"]["embeddings"] == ends and "rtn_8bit" not in config["methods"]
    assert {"within_size", *config["candidates"]["within_size"]} <= set(config["study"]["methods"])
    assert set(DEFAULT["study"]["methods"]) <= set(config["study"]["methods"])


@pytest.mark.parametrize(
    ("bits", "width"), [("2", 2), ("2.5", 2), ("3", 3), ("3.4", 2), ("3.9", 3), ("4", None), ("4.1", None)]
)
def test_bits_that_no_method_of_the_study_has_get_one(bits: str, width: int | None) -> None:
    found = loaded(study(BITS=bits))
    assert found["methods"].get("within_bits", {}).get("bits") == width
    assert ("within_bits" in found["study"]["methods"]) == (width is not None)
    assert width is None or found["methods"]["within_bits"]["symmetric"] == (bits == "3")


def test_bits_that_no_method_has() -> None:
    with pytest.raises(InputError, match=r"^BITS=1: fewer than codes of 2 bits take with their scales; give BITS=2"):
        study(BITS="1")


@pytest.mark.parametrize("value", ["much", "0", "-3", "nan", "inf"])
def test_a_limit_that_is_none(value: str) -> None:
    with pytest.raises(InputError, match=f"SIZE_MB={value}: must be a number above 0"):
        study(SIZE_MB=value)


@pytest.mark.parametrize("kind", EXPERTS)
def test_a_mixture_gets_methods_without_zero_points(here: Path, kind: str) -> None:
    (here / "My Model/config.json").write_text(json.dumps(EXPERTS[kind]))
    by_size, by_bits = study(MODEL="My Model", SIZE_MB="9"), study(MODEL="My Model", BITS="4")
    assert by_size["methods"]["within_size"].get("symmetric", False) == (kind != "dense")
    config = loaded(by_size)
    for name in config["candidates"]["within_size"]:
        assert config["methods"][name]["symmetric"] == (kind != "dense")
    assert ("gptq_symmetric" in loaded(by_bits)["study"]["methods"]) == (kind != "dense")
    files = loaded(study(MODEL="My Model", FILE="gguf"))["methods"]
    for name in GGUFS:  # iq4_nl is of bytes, which transformers does not read of experts
        found = files[name]["format"], files[name]["bits"], files[name]["symmetric"], files[name]["group_size"]
        due = ("int", 8) if name == "gguf_8bit" else ("iq4_nl" if kind == "dense" else "int", 4)
        assert found == (*due, True, 32)
    again = make_study.study_of({"SIZE_MB": "8"}, DEFAULT, study(MODEL="My Model"))
    assert again["methods"]["within_size"].get("symmetric", False) == (kind != "dense"), "of an earlier run's model"


@pytest.mark.parametrize(
    ("config", "known"),
    [
        ({"model_type": "gpt2"}, False),
        ({"model_type": "opt"}, False),  # of which the MLP alone is known
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, True),
        ({"model_type": "llava", "text_config": {"model_type": "opt"}}, False),
        ({"model_type": "minicpm"}, True),
        ({"model_type": "qwen3"}, True),
        ({"n_embd": 8}, True),  # nobody knows what
    ],
)
def test_a_model_whose_scales_fold_nowhere_gets_methods_without(
    here: Path, config: dict[str, Any], known: bool
) -> None:
    (here / "My Model/config.json").write_text(json.dumps(config))
    for limits in ({}, {"SIZE_MB": "9"}, {"BITS": "3"}, {"BITS": "4"}):
        found = loaded(study(MODEL="My Model", **limits))
        names = {*found["study"]["methods"], *found["sensitivity"]["methods"]}
        assert any(found["methods"][name]["scope"] == "shared" for name in names) == known
        for key in ("methods", "task_methods"):
            assert ("gptq_clip" in found["study"][key]) == (not known)
            assert ("awq_clip_gptq_shared" in found["study"][key]) == known
            assert len(set(found["study"][key])) == len(found["study"][key])
    text = make_study.write({"MODEL": "My Model"}, here, apart=False).read_text()
    said = (
        "# gptq_clip stands for awq_clip_gptq_shared: it is not known which linears of this model could share a scale"
    )
    assert (said in text.splitlines()) == (not known)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/Llama-3.2-1B/", "Llama-3.2-1B"),
        ("a.GGUF", "a"),
        ("über Größe", "ber-Gr-e"),
        ("…", "mine"),
        ("/x/logs", "logs-own"),
        ("x" * 90, "x" * 60),
    ],
)
def test_names_that_folders_take(path: str, name: str) -> None:
    assert make_study.name_of(path) == name


def test_a_models_name_is_no_built_in_ones(here: Path) -> None:
    """Tables are merged by name, and it would have two sources."""
    (here / "smollm2-135m").mkdir()
    (here / "smollm2-135m/config.json").touch()
    found = loaded(study(MODEL="./smollm2-135m"))
    assert found["study"]["models"] == ["smollm2-135m-own"]
    assert found["models"]["smollm2-135m-own"]["source"] == {"directory": str(here / "smollm2-135m")}


def test_the_command_ends_in_one_line(here: Path) -> None:
    environment = {"PYTHONPATH": str(Path(make_study.__file__).parents[2]), "MODEL": "./none"}
    command = [sys.executable, "-m", "quant.workflow.make_study"]
    done = subprocess.run(command, env=environment, cwd=here, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("ERROR MODEL=./none: no such directory or file")
