"""What a pass over the calibration text works on."""

from pathlib import Path
from typing import Any, NamedTuple

from quant.data import tokens
from quant.data.tokens import Tokens
from quant.files.artifacts import versions
from quant.models.conversion.record import model_record


class Material(NamedTuple):
    """A model's checkpoint, the token ids that it reads, and what a file made of both says of its origin."""

    checkpoint: Path
    tokens: Tokens
    made_from: dict[str, Any]

    @classmethod
    def of(cls, record: str, tokens_path: str, spec: dict[str, Any]) -> "Material":
        """record: convert's, beside its checkpoint; spec: what the tokens must have been made by."""
        fingerprint = model_record(record)["fingerprint"]
        ids = tokens.load(tokens_path, spec=spec, model_fingerprint=fingerprint)
        return cls(Path(record).parent / "checkpoint", ids, {"model_fingerprint": fingerprint, "versions": versions()})

    @property
    def provenance(self) -> dict[str, Any]:
        return self.made_from | {"token_fingerprint": self.tokens.fingerprint}
