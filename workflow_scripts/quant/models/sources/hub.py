"""A hub's model: what is downloaded of it, and an earlier download where the hub cannot be reached."""

import logging
import re
from pathlib import Path

from quant.errors import InputError, one_line

logger = logging.getLogger("quant")

HUB_TIMEOUT = 10.0  # seconds until a hub that does not answer counts as unreachable


def hub_files(names: list[str]) -> list[str]:
    """What to download of a hub model: its top folder's JSON, tokenizer and licence files, and one kind of weights."""
    top = [name for name in names if "/" not in name]
    ending = ".safetensors" if any(name.endswith(".safetensors") for name in top) else ".bin"
    kept = re.compile(r".*\.json|tokenizer.*|.*\.txt|.*\.jinja|.*\.model|LICENSE.*|NOTICE.*")
    stem = "model" if ending == ".safetensors" else "pytorch_model"
    return [name for name in top if kept.fullmatch(name) or (name.startswith(stem) and name.endswith(ending))]


def fetch_hub(identifier: str, revision: str) -> tuple[Path, str]:
    """Downloads a hub model's configuration, weights and tokenizer; returns the folder and the commit.

    A hub that cannot be reached is asked once; what an earlier run downloaded is then good enough.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    instead = "give a local directory (source: {directory: PATH}) or a GGUF file (source: {gguf: {path: PATH}}) instead"
    try:
        info = HfApi().model_info(identifier, revision=revision, timeout=HUB_TIMEOUT)
        files = hub_files([sibling.rfilename for sibling in info.siblings or []])
    except HFValidationError:
        raise InputError(f"{identifier}: is not a hub id; write OWNER/NAME, or {instead}") from None
    except RevisionNotFoundError:
        raise InputError(f"{identifier}: the hub has no revision {revision}; give a commit hash that exists") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{identifier}: the hub has no such model, or it is private; mend the id, or {instead}"
        ) from None
    except Exception as error:  # the client lets its transport's exceptions through, whatever that is
        return cached(identifier, revision, f"the hub cannot be reached ({one_line(error)}); {instead}")
    try:
        folder = Path(snapshot_download(identifier, revision=info.sha, allow_patterns=files))
    except Exception as error:
        raise InputError(
            f"{identifier}: its download broke off ({one_line(error)}); run again to resume it, or {instead}"
        ) from None
    return folder, folder.name


def cached(identifier: str, revision: str, refusal: str) -> tuple[Path, str]:
    """An earlier download of this revision, or the refusal."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(identifier, revision=revision, local_files_only=True))
    except Exception:  # not there, or not whole: either way there is only the refusal left
        raise InputError(f"{identifier}: {refusal}") from None
    logger.info("%s: the hub cannot be reached; reads the earlier download %s", identifier, folder)
    return folder, folder.name
