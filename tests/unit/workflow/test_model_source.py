"""Where make's MODEL comes from: a hub's commit, and what conversion makes of it."""

from pathlib import Path
from typing import Any

import pytest

from quant.errors import InputError
from quant.models.sources import reading
from quant.workflow import make_study, model_source
from tests.unit.workflow.configurations import DEFAULT
from tests.unit.workflow.made_studies import COMMIT, study


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


def test_what_conversion_makes_another_model_of_is_known_as_that() -> None:
    assert model_source.NATIVE.keys() == reading.NATIVE_CONFIGS.keys()
