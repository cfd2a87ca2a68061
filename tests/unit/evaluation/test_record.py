"""What an evaluation writes, from files to a file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quant.comparison.summary import summary_row
from quant.data.tokens import Shard, Tokens, save
from quant.errors import InputError
from quant.evaluation import record
from quant.files import tensorfile
from tests.unit import reference as slow

SUMMARY = {"bits_per_weight": 4.0, "quantize_s": 1.0, "storage": "simulated", "storage_reason": "keep: awq"}
SUMMARY |= {"quantized_share": 0.5, "parameters": 1000}


def test_run_writes_original_and_method(
    tiny_checkpoint: Path, model: nn.Module, ragged: Tokens, tmp_path: Path
) -> None:
    """The method here is the model itself: no divergence, the same NLL."""
    tokens_path, kept = str(tmp_path / "tokens.safetensors"), str(tmp_path / "reference.safetensors")
    save(tokens_path, ragged.sequences, {})
    dataset: dict[str, Any] = {"kl_tokens": 10, "protocol": "samples", "seq_len": 12}
    compute = {"device": "cpu", "dtype": "auto", "batch_tokens": 25}
    config = str(tiny_checkpoint / "config.json")
    subject = record.Subject("m", "original", "d", config, tokens_path, dataset, compute)
    record.run(subject, record.Original(kept), str(tmp_path / "a.json"))
    (tmp_path / "record.json").write_text(json.dumps({"summary": SUMMARY, "provenance": {"versions": {}}}))
    same_model = record.Quantised(kept, config, str(tmp_path / "record.json"))
    record.run(dataclasses.replace(subject, method="same"), same_model, str(tmp_path / "b.json"))
    original, same = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    for mine, theirs in zip(original["sequences"], same["sequences"], strict=True):
        assert theirs["kl"] == pytest.approx(mine["kl"], abs=1e-5) and theirs == mine | {"kl": theirs["kl"]}
    assert (original["kl"], original["top1_agreement"], original["kl_tokens"]) == (0, 1, 10)
    assert same["kl"] == pytest.approx(0, abs=1e-5) and same["top1_agreement"] == 1
    assert (original["bits_per_weight"], same["bits_per_weight"]) == (32, 4)
    assert (original["quantized_share"], same["quantized_share"]) == (0, 0.5)
    assert original["tensors"] == same["tensors"]
    assert same["file_bits_per_weight"] == 8 * same["size_mb"] * 1e3
    assert original["size_mb"] == (tiny_checkpoint / "model.safetensors").stat().st_size / 1e6
    row = summary_row(same, original, {"calibrations": {}, "datasets": {"d": {"seen_share": 0.0}}}, 99, 0)
    nlls: list[float] = []
    for sequence in ragged.sequences:
        with torch.inference_mode():
            logits = model(sequence[None]).logits[0, :-1]
        nlls += slow.nll(logits.double().numpy(), sequence[1:].tolist())
    assert row.ppl == pytest.approx(slow.perplexity(nlls), rel=1e-5)
    assert row.nll == pytest.approx(sum(nlls) / len(nlls), rel=1e-5) and row.tokens == len(nlls)
    assert (row.delta_nll, row.delta_nll_low, row.delta_nll_high) == (0, 0, 0)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("shards", [2, 9])  # of 6 sequences
def test_shards_give_the_same_evaluations(tiny_checkpoint: Path, ragged: Tokens, tmp_path: Path, shards: int) -> None:
    """The original's and a method's, and the reference that lies between them."""
    tokens_path = str(tmp_path / "tokens.safetensors")
    save(tokens_path, ragged.sequences, {})
    (tmp_path / "record.json").write_text(json.dumps({"summary": SUMMARY, "provenance": {"versions": {}}}))
    dataset: dict[str, Any] = {"kl_tokens": 10, "protocol": "samples", "seq_len": 12}
    compute = {"device": "cpu", "dtype": "auto", "batch_tokens": 25}
    config = str(tiny_checkpoint / "config.json")
    subject = record.Subject("m", "original", "d", config, tokens_path, dataset, compute)

    def evaluations(folder: Path, shards: int) -> list[dict[str, Any]]:
        out, kept = [str(folder / f"{name}.json") for name in "ab"], str(folder / "reference")
        of_method = dataclasses.replace(subject, method="same")
        side = record.Quantised(kept, config, str(tmp_path / "record.json"))
        if shards == 1:
            record.run(subject, record.Original(kept), out[0])
            record.run(of_method, side, out[1])
        else:
            parts = [[str(folder / f"{name}.{i}") for i in range(shards)] for name in "rab"]
            for i in range(shards):
                record.run(subject, record.Original(parts[0][i]), parts[1][i], Shard(i, shards))
            record.sum_shards(subject, record.Original(kept), parts[1], parts[0], out[0])
            for i in range(shards):
                record.run(of_method, side, parts[2][i], Shard(i, shards))
            record.sum_shards(of_method, side, parts[2], (), out[1])
            with pytest.raises(InputError, match="another shard "):
                record.sum_shards(of_method, side, parts[2][::-1], (), out[1])
        with tensorfile.opened(kept) as file:
            states = {name: file.get(name) for name in sorted(file.names)}
        return [*(json.loads(Path(path).read_text()) for path in out), states]

    for whole, found in zip(evaluations(tmp_path / "1", 1), evaluations(tmp_path / "n", shards), strict=True):
        assert list(found) == list(whole)
        for key in found.keys() - {"tokens_per_s", "checksum"}:
            if isinstance(found[key], torch.Tensor):
                torch.testing.assert_close(found[key], whole[key], rtol=1e-4, atol=1e-5)
            elif key == "sequences":
                for mine, theirs in zip(found[key], whole[key], strict=True):
                    assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5)
            elif key == "profile":
                for by, binned in whole[key].items():
                    assert found[key][by]["tokens"] == binned["tokens"]
                    torch.testing.assert_close(*(torch.tensor(one[key][by]["nll"]) for one in (found, whole)))
            elif isinstance(found[key], float):
                assert found[key] == pytest.approx(whole[key], rel=1e-5, abs=1e-5, nan_ok=True), key
            else:
                assert found[key] == whole[key], key
