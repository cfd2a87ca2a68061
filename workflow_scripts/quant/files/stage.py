"""Where a job makes in steps what gets its name at the end."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from quant.errors import InputError
from quant.files import shards


@contextlib.contextmanager
def hidden(place: Path, kind: str) -> Iterator[Path]:
    """A folder of its own within `place`, gone at the end; what killed jobs of the kind left goes first. Refusals speak
    of its files as of those in `place`."""
    place.mkdir(parents=True, exist_ok=True)
    for left in place.glob(f".{kind}.*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f".{kind}.", dir=place) as name:
        try:
            yield Path(name)
        except InputError as error:
            raise InputError(str(error).replace(name, str(place))) from None


def publish(stage: Path, target: Path) -> None:
    """Gives a finished checkpoint's files their names; of another one's weights nothing stays."""
    target.mkdir(parents=True, exist_ok=True)
    shards.publish(stage, target)
    for file in sorted(stage.iterdir()):
        file.replace(target / file.name)
