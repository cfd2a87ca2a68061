"""Quantised embeddings and heads: as plain transformers loads them, as exports hold them, and by what they cost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quant.calibration.embedding_moments import frequencies, predicted
from quant.calibration.reader import Statistics
from quant.calibration.second_moments import to_triangle
from quant.checkpoints import stored
from quant.checkpoints.embeddings import embeddings_of, grid_of
from quant.checkpoints.export import export
from quant.errors import InputError
from quant.evaluation.perplexity import load_model
from quant.files import tensorfile
from quant.methods.budgets.choice import Budget, Candidate, Given
from quant.methods.budgets.mixed import mix_checkpoint
from quant.methods.embeddings import rounded
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.recipe.grids import Grid
from quant.recipe.recipe import Recipe
from tests.unit.methods.budgets.mixtures import READS
from tests.unit.recipe.cases import LINEARS, MADE, PATTERNS, PLAIN, recast

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
IDS = torch.randint(0, 256, (2, 30), generator=torch.Generator().manual_seed(0))
Made = Callable[..., tuple[Path, Any]]


def described(tied: bool) -> Any:
    return {"embedding": EMBEDDING, "head": HEAD, "tied": tied, "unread": ""}


@pytest.fixture
def source(tiny_checkpoint: Path, tmp_path: Path) -> Callable[[bool], Path]:
    def made(tied: bool) -> Path:
        from transformers import LlamaConfig, LlamaForCausalLM

        if (tmp_path / "source").exists():
            return tmp_path / "source"
        shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 256}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
        torch.manual_seed(0)
        config = LlamaConfig(**shape, **heads, initializer_range=0.2, bos_token_id=None, eos_token_id=None)
        config.tie_word_embeddings = tied
        folder = recast(tiny_checkpoint, tmp_path / "source", lambda tensors: None)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        return folder

    return made


@pytest.fixture
def end_loss(tmp_path: Path) -> str:
    """Moments of random inputs and tokens of very different frequency."""
    generator, found = torch.Generator().manual_seed(4), {}
    for name in (EMBEDDING, HEAD):
        x = torch.randn(100, 64, generator=generator) * torch.logspace(-1, 1, 64)
        found[f"{name}.moment"] = to_triangle(x.T @ x / 100)
        found[f"{name}.rows"] = torch.rand(256, generator=generator) ** 8
    path = tmp_path / "end_loss.safetensors"
    provenance = {"model_fingerprint": "tiny", "token_fingerprint": "tokens"}
    tensorfile.save(path, found, {"provenance": json.dumps(provenance)})
    return str(path)


@pytest.fixture
def made(source: Any, tmp_path: Path) -> Made:
    """A checkpoint and its record."""

    def quantized(tied: bool, method: str = "out", **changes: Any) -> tuple[Path, Any]:
        folder = tmp_path / method
        recipe = PLAIN | {"group_size": 16, "embeddings": {"bits": 8, "group_size": -1}} | changes
        record = quantize_checkpoint(
            Source(source(tied), LINEARS, {HEAD: "output head"}, embeddings=described(tied)),
            Output(folder / "checkpoint", folder / "folds.safetensors"),
            Statistics({}, "tiny", PATTERNS, "tokens"),
            Recipe.of(recipe),
            "cpu",
            MADE | {"recipe": recipe},
        )
        return folder / "checkpoint", record

    return quantized


def plain_of(checkpoint: Path) -> Any:
    return load_model(checkpoint.parents[1] / "source", "cpu", torch.float32)


def check_loaded(checkpoint: Path) -> None:
    """Plain transformers has our numbers to the bit, and so every logit."""
    model = load_model(checkpoint, "cpu", torch.float32)
    with stored.opened(checkpoint, "tiny") as file, torch.inference_mode():
        dense = stored.Dense(file)  # as it is evaluated block by block
        assert (
            file.count()
            == sum(dense.get(name).numel() for name in dense.names)
            == sum(each.numel() for each in {id(p): p for p in plain_of(checkpoint).parameters()}.values())
        )
        for name in (EMBEDDING, "model.layers.0.mlp.up_proj"):
            assert torch.equal(dense.get(f"{name}.weight"), file.weight(name))
        names = [*LINEARS, *(name for name in (EMBEDDING, HEAD) if name in file.packed | file.embedding)]
        for name in names:
            assert torch.equal(model.get_submodule(name).weight, file.weight(name)), name
        if HEAD not in names:
            assert torch.equal(model.get_submodule(HEAD).weight, file.weight(EMBEDDING))
        plain = plain_of(checkpoint)
        for name in names:
            plain.get_submodule(name).weight = torch.nn.Parameter(file.weight(name))
        if HEAD not in names:
            plain.get_submodule(HEAD).weight = torch.nn.Parameter(file.weight(EMBEDDING))
        assert torch.equal(model(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(8, -1), (4, 32)])
def test_transformers_loads_them(made: Made, tied: bool, bits: int, group_size: int, tmp_path: Path) -> None:
    """A byte a code in the embedding, whatever the width; an untied head is packed like a linear."""
    checkpoint, record = made(tied, embeddings={"bits": bits, "group_size": group_size})
    check_loaded(checkpoint)
    assert record["summary"]["storage"] == "packed" and "embedding" in record["summary"]["no_kernels"]
    assert HEAD not in record["summary"]["left"] and record["summary"]["quantized_share"] > 0.99
    held = load_file(checkpoint / "model.safetensors")
    assert held[f"{EMBEDDING}.weight"].dtype == torch.int8 and (f"{HEAD}.weight_packed" in held) != tied
    assert held[f"{EMBEDDING}.weight"].abs().max() == 2 ** (bits - 1) - 1
    rows = {row["module"]: row["storage_bits"] for row in record["embeddings"]}
    own = {n: v for n, v in held.items() if n.startswith((f"{EMBEDDING}.", f"{HEAD}."))}
    assert sum(rows.values()) == 8 * sum(value.nbytes for value in own.values())
    original = load_file(tmp_path / "source/model.safetensors")
    error = (original[f"{EMBEDDING}.weight"].float() - load_weight(checkpoint, EMBEDDING)).abs()
    assert 0 < error.max() < 1.01 * original[f"{EMBEDDING}.weight"].float().abs().max() / (2**bits - 2)


@pytest.mark.parametrize("tied", [True, False])
def test_llama_cpps_own_format_in_both(made: Made, tied: bool, tmp_path: Path) -> None:
    """A byte a code for transformers, 4 bits in the GGUF, the same numbers."""
    from transformers import AutoModelForCausalLM

    entry = {"bits": 4, "group_size": 32, "format": "iq4_nl"}
    checkpoint, record = made(tied, embeddings=entry, **entry, symmetric=True)
    check_loaded(checkpoint)
    assert record["summary"]["storage"] == "packed" and record["summary"]["quantized_share"] > 0.99
    with stored.opened(checkpoint, "tiny") as file:
        assert file.embedding == {EMBEDDING: Grid(4, 32, True, "iq4_nl")}
        assert (file.linear(EMBEDDING).step < 0).any() and file.linear(EMBEDDING).codes.min() == -127
    done = export(checkpoint, tmp_path / "gguf", "gguf", "tiny")
    assert done == done | {"type": "IQ4_NL", "largest_deviation": 0.0}
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "gguf", dtype=torch.float32, gguf_file="model.gguf").eval()
    with torch.inference_mode():
        expected = load_model(checkpoint, "cpu", torch.float32)(IDS).logits
        torch.testing.assert_close(found(IDS).logits, expected, rtol=0, atol=1e-4)


def load_weight(checkpoint: Path, name: str) -> torch.Tensor:
    with stored.opened(checkpoint, "tiny") as file:
        return file.weight(name)


def test_what_they_cost_rounds_and_predicts(source: Any, end_loss: str) -> None:
    """Against float64 sums over rows; error feedback by the common moment beats the nearest point."""
    folder, expected, found = source(True), {}, {}
    known = {"model_fingerprint": "tiny", "token_fingerprint": "tokens"}
    w = load_file(folder / "model.safetensors")[f"{EMBEDDING}.weight"].float()
    for rounding in ("nearest", "gptq"):
        entry = {"clip": True, "rounding": rounding, "embeddings": {"bits": 4, "group_size": 32}}
        with tensorfile.opened(folder / "model.safetensors") as file:
            ends = embeddings_of(described(True), grid_of(entry["embeddings"]))
            (end,) = rounded(file, ends, Recipe.of(PLAIN | entry), end_loss, "cpu", known)
        assert end.owners == [EMBEDDING, HEAD] and end.codes.codes.abs().max() <= 8
        difference = (w - end.codes.dequantize()).double().numpy()
        found[rounding], expected[rounding] = end.predicted_nats, 0.0
        with tensorfile.opened(end_loss) as file:
            for name in (EMBEDDING, HEAD):
                folded, rows = file.get(f"{name}.moment").double(), file.get(f"{name}.rows").double().numpy()
                moment = np.zeros((64, 64))
                for r in range(32):
                    moment[r, r:] = folded[r, r + 1 :]
                    moment[63 - r, 63 - r :] = folded[r, : r + 1].flip(0)
                moment = np.triu(moment) + np.triu(moment, 1).T
                expected[rounding] += 0.5 * sum(rows[t] * difference[t] @ moment @ difference[t] for t in range(256))
    assert found == pytest.approx(expected, rel=1e-4) and found["gptq"] < 0.9 * found["nearest"]


def test_unseen_tokens_share_what_is_seen_once() -> None:
    found = frequencies(torch.tensor([5, 1, 0, 3, 0, 1]))
    np.testing.assert_allclose(found, [0.4, 0.08, 0.1, 0.24, 0.1, 0.08])
    assert torch.equal(frequencies(torch.zeros(3, dtype=torch.int64)), torch.zeros(3, dtype=torch.float64))
    assert predicted(torch.zeros(3, 2), [(torch.eye(2), torch.ones(3))]) == 0


@pytest.mark.parametrize("kind", ["dense", "gguf"])
@pytest.mark.parametrize(("tied", "bits"), [(True, 8), (False, 4)])
def test_exports_hold_them(made: Made, tied: bool, bits: int, kind: str, tmp_path: Path) -> None:
    """GGUF's token_embd, and its output where the head has a weight of its own, in blocks of codes."""
    from transformers import AutoModelForCausalLM

    checkpoint, _ = made(tied, group_size=32, symmetric=True, embeddings={"bits": bits, "group_size": 32})
    target = tmp_path / kind
    done = export(checkpoint, target, kind, "tiny")
    assert done["largest_deviation"] < (0.01 if kind == "gguf" else 0.5)  # steps, which bfloat16 cuts
    options = {"gguf_file": "model.gguf"} if kind == "gguf" else {}
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, **options).eval()
    with torch.inference_mode():
        torch.testing.assert_close(
            model(IDS).logits, load_model(checkpoint, "cpu", torch.float32)(IDS).logits, rtol=0, atol=0.2
        )
    if kind == "gguf":
        import gguf

        types = {each.name: each.tensor_type.name for each in gguf.GGUFReader(target / "model.gguf").tensors}
        block = {4: "Q4_0", 8: "Q8_0"}[bits]
        assert types["token_embd.weight"] == block and types.get("output.weight", block) == block


def test_a_budget_takes_them_where_its_size_wants_them(made: Made, end_loss: str, tmp_path: Path) -> None:
    """As whole as a linear: quantised, or as they are."""
    made_of, source = [], tmp_path / "source"
    for bits in (4, 8):
        checkpoint, record = made(True, f"b{bits}", bits=bits)
        rows = {row["linear"]: row["storage_bits"] for row in record["linears"]}
        made_of.append(Candidate(f"b{bits}", checkpoint.parent, record, dict.fromkeys(LINEARS, 4.0**-bits), rows))
    ends = embeddings_of(described(True), grid_of({"bits": 8, "group_size": -1}))
    sizes = {}
    least = (made_of[0].checkpoint / "model.safetensors").stat().st_size
    for name, size in (("small", least / 1e6 + 0.002), ("large", 0.19)):
        limits = {"bits_per_weight": 0.0, "size_mb": size}
        more = {"token_fingerprint": "tokens"}
        record = mix_checkpoint(
            Source(source, LINEARS, {HEAD: "output head"}),
            Output(tmp_path / name / "checkpoint", tmp_path / name / "folds.safetensors"),
            Given(made_of, True, READS, MADE | more),
            Budget(limits, ends, end_loss),
        )
        path = tmp_path / name / "checkpoint"
        check_loaded(path)
        sizes[name] = (path / "model.safetensors").stat().st_size
        assert sizes[name] <= 1e6 * size, name
        taken = "embeddings" in record
        held = load_file(path / "model.safetensors")
        assert (held[f"{EMBEDDING}.weight"].dtype == torch.int8) == taken
        if taken:
            before = load_file(made_of[0].checkpoint / "model.safetensors")
            assert all(torch.equal(held[key], before[key]) for key in held if key.startswith((EMBEDDING, HEAD)))
            assert record["embeddings"] == made_of[0].record["embeddings"]
        assert (HEAD in record["summary"]["left"]) != taken
        assert taken == (name == "small")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda held, config: held.pop(f"{EMBEDDING}.weight_scale"), "weight_scale is"),
        (lambda held, config: config["config_groups"].pop("embedding"), "holds codes"),
        (lambda held, config: config["config_groups"]["embedding"].update(format="dense"), "holds no codes"),
        (lambda held, config: config["config_groups"]["embedding"].pop("weights"), "is none of"),
    ],
)
def test_a_damaged_file_is_refused(made: Made, damage: Any, words: str) -> None:
    checkpoint, _ = made(True)
    held, config = load_file(checkpoint / "model.safetensors"), json.loads((checkpoint / "config.json").read_text())
    damage(held, config["quantization_config"])
    provenance = {"format": "pt", "provenance": json.dumps({"model_fingerprint": "tiny"})}
    save_file(held, checkpoint / "model.safetensors", provenance)
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=words), stored.opened(checkpoint):
        pass


def test_what_cannot_be_is_said(made: Made, source: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"group_size 48 does not divide the 64 channels of model\.embed_tokens"):
        made(True, embeddings={"bits": 8, "group_size": 48})
    checkpoint, _ = made(True, group_size=32)
    with pytest.raises(InputError, match="leaves in 16 bit"):
        export(checkpoint, tmp_path / "awq", "awq", "tiny")
