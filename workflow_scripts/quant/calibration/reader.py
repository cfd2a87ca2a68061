"""The statistics that a recipe reads, from the files of its calibration set."""

import contextlib
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from quant.calibration.channels import OF_INPUT, Channels, channels_of, input_of, lent_in
from quant.calibration.parts import row_parts
from quant.calibration.second_moments import from_triangle
from quant.files import tensorfile
from quant.files.artifacts import require
from quant.models.structure.names import kind_of


@dataclass(frozen=True)
class LinearStatistics:
    """What calibration knows of one linear; None where the recipe needs none.

    channels: per-channel means (noisy ones where the recipe asks for noise); moment: the H [in, in] to minimise by, or
    [parts, in, in], each for its part of the rows; row_weight [out]: the squared local Jacobian of each output; x_std:
    std of the whole input tensor; fisher [parts]: what an error of each part counts; rows [out, out]: what errors
    of two outputs cost together.
    """

    channels: Channels | None = None
    moment: Tensor | None = None
    row_weight: Tensor | None = None
    x_std: float = 0.0
    fisher: Tensor | None = None
    rows: Tensor | None = None

    def by_rows(self, n_out: int) -> list[tuple[slice, Tensor | None]]:
        """The rows of each part, with their H."""
        if self.moment is None or self.moment.ndim == 2:
            return [(slice(0, n_out), self.moment)]
        return list(zip(row_parts(n_out, len(self.moment)), self.moment, strict=True))


def unfolded(stored: Tensor) -> Tensor:
    """H [in, in] of a triangle, or [parts, in, in] of several; of one alone, that one."""
    if stored.ndim == 2:
        return from_triangle(stored)
    return from_triangle(stored[0]) if len(stored) == 1 else torch.stack([from_triangle(each) for each in stored])


class Statistics:
    """The statistics files that a recipe asks for, opened; a file of another model or of other tokens is refused.

    paths: any of channels, moments, noisy, weighted, row_weight (which may be one file), rows. A noisy mean stands in
    for the plain one, and so do the weighted means of an input, its second moment among them, where it has them: mixed
    with the plain ones, which count plain_share.
    """

    def __init__(
        self,
        paths: dict[str, str],
        model_fingerprint: str,
        patterns: dict[str, list[str]],
        token_fingerprint: str | None = None,
        plain_share: float = 0.0,
    ) -> None:
        self._stack, self._paths, self._patterns = contextlib.ExitStack(), paths, patterns
        self._plain_share = plain_share
        self._expected = {"model_fingerprint": model_fingerprint}
        if token_fingerprint is not None:
            self._expected["token_fingerprint"] = token_fingerprint
        self._files: dict[str, tensorfile.TensorFile] = {}
        self._reads: dict[str, str] = {}
        self._lent: dict[str, str] = {}
        self._last: tuple[tuple[str, ...], Tensor | None] = (), None  # the last moment read, which linears may share

    def __enter__(self) -> "Statistics":
        for key, path in self._paths.items():
            file = self._files[key] = self._stack.enter_context(tensorfile.opened(path))
            require(path, file.info("provenance"), **self._expected)
            self._reads |= file.info("reads")
            self._lent |= lent_in(file)
        return self

    def __exit__(self, *args: object) -> None:
        self.release()
        self._stack.close()

    def release(self) -> None:
        """No linear asks again for the second moment that was read last."""
        self._last = (), None

    @property
    def token_fingerprint(self) -> str | None:
        """Of the calibration tokens; None where the recipe uses none."""
        expected = self._expected.get("token_fingerprint")
        return next((file.info("provenance")["token_fingerprint"] for file in self._files.values()), expected)

    def _weighted(self, linear: str) -> bool:
        return "weighted" in self._files and f"{linear}.moment" in self._files["weighted"].names

    def _moments_of(self, linear: str) -> list[tuple[tensorfile.TensorFile, str, float]]:
        """The files, names and shares of what makes a linear's second moment."""
        if "moments" not in self._files:
            return []
        source = input_of(linear, self._reads)
        plain = (self._files["moments"], self._lent.get(source, source))
        if not self._weighted(linear):
            return [(*plain, 1.0)]
        mixed = (self._files["weighted"], f"{linear}.moment", 1 - self._plain_share), (*plain, self._plain_share)
        return [each for each in mixed if each[2]]

    def prefetch(self, linears: list[str], device: str) -> None:
        """Reads ahead the second moments that these linears will ask for."""
        for file, name in dict.fromkeys(
            (file, name) for linear in linears for file, name, _ in self._moments_of(linear)
        ):
            file.prefetch([name], device)

    def _moment(self, linear: str, device: str) -> Tensor | None:
        parts = self._moments_of(linear)
        key = tuple(name for _, name, _ in parts)
        if parts and key != self._last[0]:
            self._last = (), None  # before the next one takes its place in memory
            moments = (unfolded(file.get(name, device, torch.float32)).mul_(share) for file, name, share in parts)
            self._last = key, reduce(Tensor.add_, moments)
        return self._last[1] if parts else None

    def token_weights(self, linear: str, device: str) -> Tensor | None:
        """What each calibration token counts [parts, tokens], 1 on average: the end loss's ω, mixed with the plain
        moment's share; None where all count alike."""
        if "weighted" not in self._files or f"{linear}.omega" not in self._files["weighted"].names:
            return None
        omega = self._files["weighted"].get(f"{linear}.omega", device)
        mean = omega.mean(1, keepdim=True, dtype=torch.float64).float()
        return (omega / torch.where(mean > 0, mean, 1.0)).mul_(1 - self._plain_share).add_(self._plain_share)

    def of(self, linear: str, device: str) -> LinearStatistics:
        """What one linear's recipe reads."""
        channels = weight = None
        x_std = 0.0
        if "channels" in self._files:
            kind = kind_of(linear, self._patterns)
            channels = channels_of(self._files["channels"], linear, self._reads, kind, device)
        if "noisy" in self._files:
            file, source = self._files["noisy"], input_of(linear, self._reads)
            x_std = file.get(f"{source}.x_std").item()
            assert channels is not None  # noisy means take the place of plain ones
            x_abs, x_sq = (file.get(f"{source}.{key}", device) for key in ("x_abs", "x_sq"))
            channels = channels._replace(x_abs=x_abs, x_sq=x_sq, act_abs=file.get(f"{linear}.act_abs", device))
        moment, fisher = self._moment(linear, device), None
        if self._weighted(linear) and f"{linear}.fisher" in self._files["weighted"].names:
            fisher = self._files["weighted"].get(f"{linear}.fisher", device)
        if self._weighted(linear) and channels is not None:
            weighted = (self._files["weighted"].get(f"{linear}.{key}", device) for key in OF_INPUT)
            plain, share = (getattr(channels, key) for key in OF_INPUT), self._plain_share
            mixed = ((1 - share) * value + share * other for value, other in zip(weighted, plain, strict=True))
            channels = channels._replace(**dict(zip(OF_INPUT, mixed, strict=True)))
        if "row_weight" in self._files and f"{linear}.row_weight" in self._files["row_weight"].names:
            weight = self._files["row_weight"].get(f"{linear}.row_weight", device)
        between = None
        if "rows" in self._files and f"{linear}.rows" in self._files["rows"].names:  # attention's has those of q and k
            between = from_triangle(self._files["rows"].get(f"{linear}.rows", device, torch.float32))
        return LinearStatistics(channels, moment, weight, x_std, fisher, between)
