"""Where make's MODEL comes from, and what its config.json says before it is converted."""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quant.errors import InputError
from quant.models.sources.gguf_hyperparameters import model_type_read
from quant.workflow.paths import home

HUB_ID = re.compile(r"(?:[\w.-]+/)?[\w.-]+")
HUB_TIMEOUT = 10.0  # seconds
# what conversion makes of a model that has only code of its own (quant.models.sources.minicpm)
NATIVE = {"minicpm": "granite"}


def commit_of(identifier: str, revision: str | None) -> str:
    """The commit that a hub model's revision, or its main branch, stands at; without a network, the last download's."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    instead = "give a model's directory, a GGUF file or another OWNER/NAME[@REVISION]"
    try:
        commit = HfApi().model_info(identifier, revision=revision, timeout=HUB_TIMEOUT).sha
        assert commit is not None, "the hub names the commit of every revision"
        return commit
    except RevisionNotFoundError:
        raise InputError(f"MODEL={identifier}@{revision}: the hub has no such revision; {instead}") from None
    except (HFValidationError, RepositoryNotFoundError):
        raise InputError(
            f"MODEL={identifier}: is nothing here, and the hub has no such model, or it is private; {instead}"
        ) from None
    except Exception:  # the client lets its transport's exceptions through, whatever that is
        folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=identifier, repo_type="model"))
        reference = folder / "refs" / (revision or "main")
        if reference.is_file():
            return reference.read_text().strip()
        raise InputError(
            f"MODEL={identifier}: is nothing here, and the hub cannot be reached; {instead}, or with a commit"
        ) from None


def source_of(model: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """Where a model comes from: a directory, a GGUF file, or a hub id at a commit; before: the source that an earlier
    run noted, whose commit is kept."""
    path = home(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"MODEL={model}: has no config.json; give a directory with a model's config.json and weights"
            )
        return {"directory": str(path.absolute())}
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise InputError(f"MODEL={model}: is a file and no GGUF; give a GGUF file, or the model's directory")
        return {"gguf": {"path": str(path.absolute())}}
    identifier, _, revision = model.partition("@")
    if model.startswith(("/", "~", ".")) or not HUB_ID.fullmatch(identifier):
        raise InputError(
            f"MODEL={model}: no such directory or file; give a model's directory, a GGUF file or OWNER/NAME[@REVISION]"
        )
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return {"hub": {"id": identifier, "revision": revision}}
    noted = before.get("hub", {})
    if not revision and noted.get("id") == identifier:
        return {"hub": dict(noted)}
    return {"hub": {"id": identifier, "revision": commit_of(identifier, revision or None)}}


def words_of(source: Mapping[str, Any]) -> str:
    """A source as MODEL would say it; a package by its name and version."""
    if "directory" in source:
        return str(source["directory"])
    own = source.get("hub") or source["gguf"]
    return str(own["path"]) if "path" in own else "@".join(list(map(str, own.values()))[:2])


@functools.cache
def config_of_hub(identifier: str, revision: str) -> dict[str, Any]:
    """A hub model's config.json at a commit, asked for once; {} where it cannot be had at once."""
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers, get_session

    try:
        cached = try_to_load_from_cache(identifier, "config.json", revision=revision)
        if isinstance(cached, str):
            return dict(json.loads(Path(cached).read_text(encoding="utf-8")))
        url = hf_hub_url(identifier, "config.json", revision=revision)
        answer = get_session().get(url, headers=build_hf_headers(), timeout=HUB_TIMEOUT, follow_redirects=True)
        return dict(answer.raise_for_status().json())
    except Exception:  # the client lets its transport's exceptions through, whatever that is
        return {}


def config_of(source: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is known of a model before it is converted: its config.json, of a multimodal one the text model's part, or
    what a GGUF file says in its place; {} where nothing is. (check_study and check_best then say what does not go with
    the model.)"""
    from quant.models.sources.peek import peek

    if source is None or "package" in source.get("gguf", {}):
        return {}  # a built-in one, which may not be here yet
    try:
        found = (
            config_of_hub(source["hub"]["id"], source["hub"]["revision"]) if "hub" in source else peek(dict(source), [])
        )
    except (InputError, OSError, KeyError, ValueError):
        return {}
    if "gguf" in source:
        found |= {"model_type": model_type_read(str(found.get("model_type")))}
    return dict(found.get("text_config") or found)


def model_type_of(config: Mapping[str, Any]) -> str | None:
    """That of the checkpoint which is made of a model; None where nothing is known of it."""
    kind = config.get("model_type")
    return NATIVE.get(kind, kind) if isinstance(kind, str) else None
