"""make's MODEL, TEXT, SIZE_MB and BITS as an experiment."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from quant.errors import InputError
from quant.models.sources import reading
from quant.workflow import configuration, make_study, model_source
from quant.workflow.gguf_methods import GGUFS, fewest_bits
from quant.workflow.make_study import WRITTEN
from tests.unit.workflow.configurations import DEFAULT, SCHEMA

ADDED = {"add": {"methods": ["rtn_8bit"]}}
WITH_8_BITS = {"methods": {"rtn_8bit": {"bits": 8, "group_size": -1, "symmetric": True}}}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model's directory, a GGUF file, another file and a text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "My Model").mkdir()
    (tmp_path / "My Model/config.json").touch()
    (tmp_path / "model.Q4_0.gguf").write_bytes(b"GGUF\3\0\0\0")
    (tmp_path / "model.bin").write_bytes(b"PK")
    (tmp_path / "notes.txt").write_text("\n\n".join(f"{i} and " * 20 for i in range(90)))
    return tmp_path


def study(**given: str) -> dict[str, Any]:
    return make_study.study_of(given, DEFAULT, {})


def loaded(changes: dict[str, Any]) -> dict[str, Any]:
    """What the workflow makes of an experiment: tables merged by name."""
    from snakemake.utils import update_config

    from quant.workflow import paths

    config = json.loads(json.dumps(DEFAULT))
    update_config(config, changes)
    return configuration.load(paths.named_texts(config), SCHEMA)


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


class TestHub:
    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
        """What a hub is asked; it answers with a commit."""
        import huggingface_hub

        asked: list[tuple[str, str | None]] = []

        def model_info(_: Any, identifier: str, revision: str | None, timeout: float) -> Any:
            asked.append((identifier, revision))
            return type("Info", (), {"sha": COMMIT})

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        return asked

    def test_a_branch_is_the_commit_it_stands_at(self, here: Path, hub: list[Any]) -> None:
        for model, revision in (("owner/name", None), ("owner/name@dev", "dev")):
            assert study(MODEL=model)["models"]["name"]["source"]["hub"]["revision"] == COMMIT
            assert hub[-1] == ("owner/name", revision)

    def test_the_first_runs_commit_is_kept(self, here: Path, hub: list[Any]) -> None:
        noted = {"models": {"name": {"source": {"hub": {"id": "owner/name", "revision": "f" * 40}}}}}
        found = make_study.study_of({"MODEL": "owner/name"}, DEFAULT, noted)
        assert found["models"] == noted["models"] and not hub
        assert make_study.study_of({"MODEL": "other/name"}, DEFAULT, noted)["models"] != noted["models"]

    def test_without_a_hub_the_last_download_or_one_line(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://hub.invalid")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here))
        with pytest.raises(
            InputError, match=r"MODEL=owner/name: is nothing here, and the hub cannot be reached"
        ) as caught:
            study(MODEL="owner/name")
        assert "\n" not in str(caught.value)
        reference = here / "models--owner--name/refs/main"
        reference.parent.mkdir(parents=True)
        reference.write_text(COMMIT)
        assert study(MODEL="owner/name")["models"]["name"]["source"]["hub"]["revision"] == COMMIT


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


EXPERTS: dict[str, dict[str, Any]] = {  # of which transformers reads no zero points
    "mixture": {"num_local_experts": 8},
    "qwen": {"text_config": {"num_experts": 128, "num_experts_per_tok": 8}},
    "dense": {"num_experts": 1, "n_routed_experts": None, "experts_implementation": "eager"},
}


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


SIZES = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 99,
}
WIDE = SIZES | {"hidden_size": 512, "head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": 8}
HEADS = SIZES | {"hidden_size": 512, "head_dim": 48, "intermediate_size": 1024}


@pytest.mark.parametrize(
    ("config", "bits", "codes"),
    [
        ({}, "3", {"format": "q3_k"}),
        (WIDE, "3", {"format": "q3_k"}),
        (WIDE | {"tie_word_embeddings": True}, "3.44", {"format": "q3_k"}),
        (WIDE, "4.4", {"format": "q3_k"}),
        (WIDE, "4", None),
        ({}, "4", None),
        (SIZES, "4.3", {"format": "iq4_nl", "tensor_types": [{"linears": "down_proj", "format": "q3_k"}]}),
        (SIZES, "4", None),
        ({"model_type": "qwen3_moe", **EXPERTS["mixture"]}, "3", {"format": "q3_k"}),
    ],
)
def test_a_file_of_fewer_than_4_bits(
    here: Path, config: dict[str, Any], bits: str, codes: dict[str, Any] | None
) -> None:
    """By tensors of Q3_K, wherever its blocks of 256 fit."""
    (here / "My Model/config.json").write_text(json.dumps(config))
    found = study(MODEL="My Model", FILE="gguf", BITS=bits)
    names = ([] if codes is None else ["gguf_3bit"]) + list(GGUFS)
    assert loaded(found)["study"]["gguf"] == names == found["study"]["add"]["methods"] == list(found["methods"])
    if codes is not None:
        method = found["methods"]["gguf_3bit"]
        assert {key: method[key] for key in ("format", "tensor_types") if key in method} == codes


def test_the_bits_of_a_file_are_those_of_its_linears() -> None:
    """Of linears by their names, whichever pattern finds them."""
    for sizes in (SIZES, WIDE, HEADS, WIDE | {"tie_word_embeddings": True}):
        bits, codes = fewest_bits(sizes)
        heads = sizes.get("head_dim", 64) * sizes["num_attention_heads"]
        key_value = sizes.get("head_dim", 64) * sizes["num_key_value_heads"]
        hidden, mlp = sizes["hidden_size"], sizes["intermediate_size"]
        shapes = {"q": (heads, hidden), "k": (key_value, hidden), "v": (key_value, hidden), "o": (hidden, heads)}
        shapes |= {"gate": (mlp, hidden), "up": (mlp, hidden), "down": (hidden, mlp)}
        head = 0 if sizes.get("tie_word_embeddings") else hidden * 99
        due = 4.5 * head
        for name, (n_out, n_in) in shapes.items():
            in_q3_k = codes["format"] == "q3_k" or any(
                re.search(each["linears"], f"model.layers.0.self_attn.{name}_proj") for each in codes["tensor_types"]
            )
            assert in_q3_k == (n_in % 256 == 0)
            due += 2 * n_out * n_in * (3 + 7 / 16 if in_q3_k else 4.5)
        assert bits == pytest.approx(due / (head + 2 * sum(n_out * n_in for n_out, n_in in shapes.values())), rel=1e-12)


@pytest.mark.parametrize(
    ("config", "bits", "message"),
    [
        (
            {},
            "2.5",
            r"BITS=2\.5 with FILE=gguf: fewer than the 3\.438 bits a weight of the smallest file, .*; give BITS=3,",
        ),
        ({}, "1", r"BITS=1 with FILE=gguf: fewer than the 3\.438 bits .*; give BITS=3, or SIZE_MB"),
        (
            SIZES,
            "3",
            r"BITS=3 with .* the 4\.236 bits a weight of the smallest .* 256 does not divide, .*; give BITS=4\.3,",
        ),
        (WIDE | {"vocab_size": 9999}, "3", r"BITS=3 with .* the 3\.893 bits .* a head .*; give BITS=3\.9,"),
        (WIDE, "3.44", r"BITS=3\.44 with .* the 3\.445 bits .*; give BITS=3,"),
        (
            HEADS | {"intermediate_size": 1000, "hidden_size": 500},
            "3.4",
            r"BITS=3\.4 with .* the 4\.5 bits .*; give BITS=4,",
        ),
        (
            {"model_type": "gpt2"},
            "",
            r"FILE=gguf is not known for model_type 'gpt2', but for llama, .*; leave FILE=gguf",
        ),
        ({"model_type": "gemma2"}, "4", r"FILE=gguf is not known for model_type 'gemma2'"),
    ],
)
def test_a_file_that_cannot_be_is_refused_at_once(here: Path, config: dict[str, Any], bits: str, message: str) -> None:
    (here / "My Model/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"^{message}") as caught:
        study(MODEL="My Model", FILE="gguf", BITS=bits)
    assert "\n" not in str(caught.value)
    (here / "first").mkdir()  # of an earlier run, whose limits stay
    (here / "first/config.json").write_text(json.dumps(WIDE))
    if bits in ("", "3"):
        make_study.write({"MODEL": "first", "FILE": "gguf", "BITS": bits}, here, apart=True)
        with pytest.raises(InputError, match=message.replace("BITS=3 ", r"BITS=3\.5 ")):
            make_study.write({"MODEL": "My Model"}, here, apart=True)


def test_what_conversion_makes_another_model_of_is_known_as_that() -> None:
    assert model_source.NATIVE.keys() == reading.NATIVE_CONFIGS.keys()


def test_a_file_for_llama_cpp(here: Path) -> None:
    """Methods whose GGUF file is measured, and one of them is taken; what GGUF has no blocks for is none of them."""
    found = study(MODEL="My Model", FILE="gguf", SIZE_MB="75")
    assert found["choose"] == {"max_bits_per_weight": None, "max_size_mb": 75.0, "storage": "gguf"}
    config = loaded(found)
    assert config["study"]["gguf"] == list(GGUFS) == config["study"]["methods"][-3:]
    assert loaded(study(FILE="gguf", BITS="4"))["choose"]["max_bits_per_weight"] == 4.5
    with pytest.raises(InputError, match=r"^FILE=onnx: must be gguf; leave it out"):
        study(FILE="onnx")


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


class TestFile:
    def test_where_it_is_and_what_it_says(self, here: Path) -> None:
        given = {"MODEL": "My Model", "TEXT": "notes.txt", "SIZE_MB": ""}
        path = make_study.write(given, here, apart=False)
        assert path == here / "results/My-Model-notes.yaml"
        first, _, rest = path.read_text().partition("\n")
        assert first == "# written by make: MODEL=My Model TEXT=notes.txt"
        assert yaml.safe_load(rest) == make_study.study_of(given, DEFAULT, {})
        assert make_study.write(given, here / "apart", apart=True) == here / "apart/config.yaml"

    def test_nothing_given(self, here: Path) -> None:
        assert make_study.write({"MODEL": ""}, here, apart=False) is None and not (here / "results").exists()
        assert make_study.write({}, here, apart=True) == here / "config.yaml"

    def test_a_folders_study_goes_on(self, here: Path) -> None:
        for given in ({"MODEL": "My Model", "TEXT": "notes.txt"}, {"BITS": "4"}, {}):
            path = make_study.write(given, here, apart=True)
        config = yaml.safe_load(path.read_text())
        assert config == make_study.study_of({"MODEL": "My Model", "TEXT": "notes.txt", "BITS": "4"}, DEFAULT, {})

    @pytest.mark.parametrize(
        "last", [{"BITS": "3"}, {"SIZE_MB": "90"}, {"FILE": "gguf"}, {"FILE": "gguf", "SIZE_MB": "9"}]
    )
    def test_limits_are_one_wish(self, here: Path, last: dict[str, str]) -> None:
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
    def test_another_model_gets_methods_that_it_can_have(self, here: Path, limits: dict[str, str]) -> None:
        """Of a mixture, without zero points; what it leaves is as if all had been said at once."""
        (here / "mixture").mkdir()
        (here / "mixture/config.json").write_text(json.dumps(EXPERTS["mixture"]))
        make_study.write({"MODEL": "My Model", **limits}, here, apart=True)
        for model in ("mixture", "My Model", "mixture"):
            config = yaml.safe_load(make_study.write({"MODEL": model}, here, apart=True).read_text())
            due = make_study.study_of({"MODEL": model, **limits}, DEFAULT, {})
            assert [config[key] for key in ("study", "methods")] == [due[key] for key in ("study", "methods")]

    def test_another_model_gets_scales_that_it_can_fold(self, here: Path) -> None:
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

    def test_a_table_of_nothing_is_none(self, here: Path) -> None:
        (here / "config.yaml").write_text(f"{WRITTEN}\nstudy: {{add: , gguf: }}\nmodels:\nmethods:\n")
        config = yaml.safe_load(make_study.write({"BITS": "4"}, here, apart=True).read_text())
        assert config == {"choose": {"max_bits_per_weight": 4.5}, "study": {"add": {}}}

    def test_what_was_written_by_hand_stays(self, here: Path) -> None:
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

    def test_on_a_full_disk_it_stays_as_it_was(self, here: Path) -> None:
        path = make_study.write({"BITS": "4"}, here, apart=True)
        before, (soft, hard) = path.read_text(), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, hard))
        try:
            with pytest.raises(InputError, match=r"/config\.yaml: cannot be written \(File too large\)"):
                make_study.write({"BITS": "3"}, here, apart=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_text() == before and not [*here.glob(".*")]

    def test_anothers_file_is_left_alone(self, here: Path) -> None:
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
        self, here: Path, folder: str, content: str | None, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if content:
            (here / folder).mkdir()
            (here / folder / "config.yaml").write_text(content, encoding="utf-8", errors="surrogateescape")
        for key, value in {"IN": folder, "BITS": "4", "MODEL": "", "TEXT": "", "SIZE_MB": ""}.items():
            monkeypatch.setenv(key, value)
        with pytest.raises(SystemExit) as caught:
            make_study.main()
        assert re.fullmatch(f"{message}[^\n]*", str(caught.value.code))

    def test_what_a_study_of_other_models_loses_is_said(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (here / "results").mkdir()
        (here / "results/summary.csv").write_text("model,method\nsmollm2-135m,original\nsmollm2-135m,rtn_g\n")
        make_study.write({"MODEL": "My Model"}, here, apart=False)
        said = capsys.readouterr().err
        assert "were of smollm2-135m and become those of My-Model" in said and "results/smollm2-135m" in said
        make_study.write({"BITS": "4"}, here, apart=False)
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("apart", [True, False])
    def test_what_another_model_of_the_same_name_replaces_is_said(
        self, here: Path, capsys: pytest.CaptureFixture[str], apart: bool
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
            assert line.startswith(f"{here}/results/My-Model was of ") and line.endswith(
                "IN=FOLDER keeps a study apart"
            )
        for text in (json.dumps({"source": {"directory": str(here / "other/My Model")}}), "{", "[]", '{"source": {}}'):
            record.write_text(text)
            make_study.write({"MODEL": "other/My Model", "BITS": "4"}, here, apart)
            assert capsys.readouterr().err == ""


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
