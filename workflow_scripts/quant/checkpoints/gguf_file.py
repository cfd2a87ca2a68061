"""GGUF files for llama.cpp, by the `gguf` package: names, hyperparameters and tokenizer of a checkpoint."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from quant.checkpoints.gguf_metadata import hyperparameters, normalised, tokenizer
from quant.errors import InputError
from quant.files.artifacts import whole
from quant.files.spool import Spool
from quant.models.structure.architectures import IN_GGUF, Gguf, architecture_of, value_heads

if TYPE_CHECKING:
    import gguf


EXPERT = re.compile(r"(.*\.experts)\.(\d+)(?=\.)")  # its module, and its number


def facts_of(config: dict[str, Any]) -> Gguf:
    """What llama.cpp calls an architecture, and its words for it; refused where that is not known."""
    facts = architecture_of(config, "a GGUF export", IN_GGUF, "export dense or awq").gguf
    assert facts is not None  # as IN_GGUF says
    return facts


class Names:
    """GGUF's names and order of rows for the tensors of an architecture."""

    def __init__(self, config: dict[str, Any]) -> None:
        import gguf

        self.facts, self._config = facts_of(config), config
        kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.facts.name)
        self._map = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])

    def of(self, tensor: str) -> str:
        """GGUF's name of a tensor; of an expert's, that of the one tensor that holds all experts'."""
        name = self._map.get_name(EXPERT.sub(r"\1", tensor), try_suffixes=(".weight", ".bias"))
        if name is None:
            raise InputError(f"{tensor}: GGUF has no name for it; export dense")
        return name

    def sources(self, tensors: Iterable[str]) -> dict[str, list[str]]:
        """By GGUF's name, the tensors that it is made of: experts by their number, one of all others."""
        found: dict[str, list[str]] = {}
        for tensor in sorted(tensors, key=lambda tensor: int(number[2]) if (number := EXPERT.match(tensor)) else 0):
            found.setdefault(self.of(tensor), []).append(tensor)
        return found

    def value(self, tensor: str, given: Tensor) -> Tensor:
        """A tensor that is not quantised, as llama.cpp has it: norms that act as weight + 1 are stored so, and routers
        in float32."""
        if self.of(tensor).endswith("ffn_gate_inp.weight"):
            return given.float()
        return given.float() + self.facts.norm if self.facts.norm and tensor.endswith("norm.weight") else given

    def rows(self, linear: str, n_rows: int) -> Tensor:
        """Where each row of GGUF's tensor comes from: llama.cpp turns neighbouring channels of a head's q and k."""
        heads, key_value, size = value_heads(self._config)
        count = {"q_proj": heads, "k_proj": key_value}.get(linear.rpartition(".")[2])
        order = torch.arange(n_rows)
        if count is None or not self.facts.neighbours:
            return order
        return order.view(count, 2, size // 2).transpose(1, 2).flatten()


def plain(value: Tensor) -> tuple[np.ndarray, str]:
    """A tensor that is not quantised, and its type: vectors in float32, matrices in the type that they have."""
    if value.ndim == 1 or value.dtype == torch.float32:
        return value.float().numpy(), "F32"
    if value.dtype == torch.bfloat16:
        return value.contiguous().view(torch.uint8).numpy(), "BF16"
    return value.half().numpy(), "F16"


def described(path: Path | None, config: dict[str, Any], checkpoint: Path, kind: str) -> "gguf.GGUFWriter":
    """A writer that has been given all but tensors, and the factors of rotary frequencies, which are one; refuses what
    the format has no word for. Nothing is written yet. kind: type of the linears."""
    import gguf

    facts = facts_of(config)
    writer = gguf.GGUFWriter(path, facts.name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    config = normalised(checkpoint)
    factors = hyperparameters(writer, config, facts)
    tokenizer(writer, config, checkpoint)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    return writer


def write(
    path: Path,
    config: dict[str, Any],
    checkpoint: Path,
    tensors: Iterator[tuple[str, np.ndarray, str]],
    kind: str,
) -> None:
    """tensors: name, numbers or rows of block bytes, and type; kind: that of the linears."""
    import gguf

    types = gguf.GGMLQuantizationType
    with whole(path) as temporary:
        writer = described(temporary, config, checkpoint, kind)
        spool = Spool(path.parent)  # the writer keeps them until it knows them all
        for name, value, stored_as in tensors:
            raw = None if stored_as in ("F32", "F16") else types[stored_as]
            kept = spool.keep(torch.from_numpy(np.ascontiguousarray(value)))
            writer.add_tensor(name, kept.numpy(), raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


class Weights:
    """A GGUF file's weights by the package's own reader."""

    def __init__(self, path: Path) -> None:
        import gguf

        self._tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    def bytes(self) -> dict[str, int]:
        """Of each tensor."""
        return {name: int(tensor.n_bytes) for name, tensor in self._tensors.items()}

    def get(self, name: str, expert: int) -> Tensor:
        """[out, in], float32; of an expert where the tensor holds several."""
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        data = tensor.data[expert] if tensor.data.ndim == 3 else tensor.data
        return torch.from_numpy(np.array(dequantize(data, tensor.tensor_type), dtype=np.float32))
