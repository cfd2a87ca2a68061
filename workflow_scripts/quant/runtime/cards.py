"""Which GPUs a machine has, and the one that a job computes on: the card that fewest jobs hold. Without torch.

A job holds a lock on a file of its card (flock), which the kernel takes back however the job ends, by kill -9 too. Jobs
of several studies and users see each other's, as long as they have one temporary folder.
"""

import contextlib
import fcntl
import itertools
import logging
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from urllib.parse import quote

logger = logging.getLogger("quant")

NVIDIA, WSL, AMD = "dev/nvidia[0-9]*", "dev/dxg", "dev/kfd"
AMD_NODES = "sys/class/kfd/kfd/topology/nodes/*/gpu_id"  # 0 where a node is a CPU
HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
NOTHING = ("", "-1", "none", "NoDevFiles")
_held: list[int] = []  # descriptors of this process's lease


def count(root: Path = Path("/")) -> int:
    """Cards of the machine, whether or not its environment hides them."""
    nodes = sum(path.read_text(encoding="utf-8").strip() != "0" for path in root.glob(AMD_NODES))
    several = len(list(root.glob(NVIDIA))) or nodes
    return several or int(any((root / one).exists() for one in (WSL, AMD)))


def visible(environment: Mapping[str, str], root: Path = Path("/")) -> tuple[str, list[str]]:
    """The variable that says which cards a job sees, and the cards as it names them; of none, an empty list."""
    said = [name for name in HIDING if name in environment]
    if not count(root) or any(environment[name].strip() in NOTHING for name in said):
        return HIDING[0], []
    if not said:
        own = HIDING[0] if not (root / AMD).exists() or any(root.glob(NVIDIA)) else HIDING[1]
        return own, list(map(str, range(count(root))))
    given = [card.strip() for card in environment[said[0]].split(",")]
    # what follows a card that is none is not seen, by CUDA's rule
    return said[0], list(itertools.takewhile(lambda card: card not in NOTHING, given))


def take(environment: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> None:
    """Leaves this process, till it ends, one of the cards that its environment shows: the first of those that fewest
    jobs hold. Nothing where there is none, where it has one, or where torch has begun to compute on one."""
    torch = sys.modules.get("torch")
    variable, cards = visible(environment, root)
    if _held or not cards or (torch is not None and torch.cuda.is_initialized()):
        return
    card, others, descriptor = lease(Path(tempfile.gettempdir(), "gpu-leases"), cards)
    _held.append(descriptor)
    environment[variable] = card
    logger.info("%s=%s, one of %d%s", variable, card, len(cards), f", with {others} other jobs" * bool(others))


def held() -> list[int]:
    """Descriptors that a child has to be handed, so that the card is taken as long as it runs."""
    return list(_held)


def lease(folder: Path, cards: Sequence[str]) -> tuple[str, int, int]:
    """The first of the cards that fewest processes hold, how many those are, and the descriptor that holds it from now
    on. A card's file FOLDER/CARD.n is locked by its n-th holder."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(stat.S_ISVTX | 0o777)  # other users' jobs too
    choice = _opened(folder / "choice")
    fcntl.flock(choice, fcntl.LOCK_EX)  # one chooses at a time
    try:
        others = {card: _holders(folder, card) for card in cards}
        chosen = min(cards, key=others.__getitem__)
        for path in _places(folder, chosen):
            if (descriptor := _locked(path)) is not None:
                return chosen, others[chosen], descriptor
        raise AssertionError("places have no end")
    finally:
        os.close(choice)


def _places(folder: Path, card: str) -> Iterator[Path]:
    return (folder / f"{quote(card, safe='')}.{n}" for n in itertools.count())


def _holders(folder: Path, card: str) -> int:
    n = 0
    for path in itertools.takewhile(Path.exists, _places(folder, card)):
        descriptor = _locked(path)
        if descriptor is None:
            n += 1
        else:
            os.close(descriptor)
    return n


def _opened(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with contextlib.suppress(FileExistsError):
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444)
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


def _locked(path: Path) -> int | None:
    """A descriptor that holds a file's lock, None where another process holds it."""
    descriptor = _opened(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
