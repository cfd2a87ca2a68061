"""Experts are linears: the same hidden states, moments of the tokens routed to them, and a packed file."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from quant.calibration import expert_moments
from quant.calibration.channels import input_of
from quant.calibration.expert_moments import Keeping
from quant.calibration.material import Material
from quant.calibration.reader import Statistics
from quant.calibration.second_moments import from_triangle
from quant.calibration.statistics import collect
from quant.checkpoints import stored
from quant.checkpoints.card import card
from quant.checkpoints.sizes import parts_mb
from quant.data.tokens import Tokens, fingerprint
from quant.errors import InputError
from quant.evaluation.perplexity import evaluate, load_model
from quant.files import tensorfile
from quant.files.units import megabytes
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.models.conversion.convert import convert
from quant.models.structure.experts import unroll
from quant.models.structure.linears import decoder_blocks, skeleton
from quant.recipe.recipe import Recipe
from quant.runtime.compute import Compute
from tests import tiny
from tests.unit.calibration.in_shards import in_shards, same

UNSEEN = (6, 7)  # experts that no token is routed to
WIDTH = 32


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-MoE of 8 experts; channel 0 of what its routers read is positive, and two of them fear it."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=256, hidden_size=WIDTH, intermediate_size=48, moe_intermediate_size=16, num_experts=8,
        num_experts_per_tok=2, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=128, initializer_range=0.2, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config).float()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0.3
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.experts.down_proj[:, 0] = 0
            layer.post_attention_layernorm.weight[1:4] = 8  # channels that a scale helps
            layer.mlp.gate.weight[:, 1:4] /= 8
            layer.mlp.gate.weight[list(UNSEEN)] = 0
            layer.mlp.gate.weight[list(UNSEEN), 0] = -100
    folder = tmp_path_factory.mktemp("moe") / "model"
    model.save_pretrained(folder)
    tiny.save_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("results") / "original"
    convert({"directory": str(source)}, folder / "checkpoint", folder / "convert.json")
    return folder / "checkpoint", tiny.read(folder / "convert.json")


@pytest.fixture(scope="module")
def ids() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (length,), generator=generator) for length in (20, 33, 20, 7)]


@pytest.fixture(scope="module")
def files(
    converted: tuple[Path, dict[str, Any]], ids: list[Tensor], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("statistics")
    paths = {name: str(folder / f"{name}.safetensors") for name in ("channels", "moments", "preactivations")}
    made = {"model_fingerprint": converted[1]["fingerprint"]}
    tokens = Tokens(ids, fingerprint(ids), {})
    collect(
        Material(converted[0], tokens, made),
        paths["channels"],
        paths["moments"],
        Compute("cpu", torch.float32, 80),
        paths["preactivations"],
    )
    return paths


def test_every_expert_is_a_linear_and_the_router_is_none(converted: tuple[Path, dict[str, Any]]) -> None:
    checkpoint, record = converted
    experts = [name for name in record["linears"] if ".experts." in name]
    assert len(experts) == 2 * 8 * 3 and "model.layers.1.mlp.experts.7.down_proj" in experts
    assert not any(name.endswith("mlp.gate") for name in record["linears"])
    assert load_file(checkpoint / "model.safetensors")["model.layers.0.mlp.experts.3.up_proj.weight"].shape == (
        16,
        WIDTH,
    )


@pytest.mark.parametrize("original", [True, False])
def test_both_formats_of_a_file_become_the_same_checkpoint(source: Path, tmp_path: Path, original: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(source)
    model.save_pretrained(tmp_path / "model", save_original_format=original)
    tiny.save_byte_tokenizer(tmp_path / "model")
    folder = tmp_path / "results/original"
    convert({"directory": str(tmp_path / "model")}, folder / "checkpoint", folder / "convert.json")
    found = load_file(folder / "checkpoint/model.safetensors")
    fused = model.model.layers[1].mlp.experts
    for index in range(8):
        name = f"model.layers.1.mlp.experts.{index}"
        gate, up = fused.gate_up_proj[index].chunk(2)
        assert torch.equal(found[f"{name}.gate_proj.weight"], gate)
        assert torch.equal(found[f"{name}.up_proj.weight"], up)
        assert torch.equal(found[f"{name}.down_proj.weight"], fused.down_proj[index])


def test_unrolled_experts_compute_the_same(source: Path, ids: list[Tensor]) -> None:
    plain, unrolled = (AutoModelForCausalLM.from_pretrained(source).eval() for _ in range(2))
    unroll(unrolled)
    with torch.inference_mode():
        torch.testing.assert_close(unrolled(ids[0][None]).logits, plain(ids[0][None]).logits, rtol=1e-5, atol=1e-5)


def inputs(checkpoint: Path, ids: list[Tensor], layer: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A layer's experts in float64, what reaches them [tokens, hidden], and the experts chosen [tokens, 2]."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64, experts_implementation="eager")
    experts, seen = model.eval().model.layers[layer].mlp.experts, []
    experts.register_forward_pre_hook(lambda module, args: seen.append(args))
    with torch.inference_mode():
        for sequence in ids:
            model(sequence[None], use_cache=False)
    return experts, torch.cat([args[0] for args in seen]), torch.cat([args[1] for args in seen])


@pytest.mark.parametrize("layer", [0, 1])
def test_moments_are_of_the_routed_tokens_and_lean_on_the_layers(
    converted: tuple[Path, dict[str, Any]], ids: list[Tensor], files: dict[str, str], layer: int
) -> None:
    """H = (n·H_expert + (d - n)·H_pooled)/d where the n tokens of an expert are fewer than a linear's d inputs; here
    the pool is every token of the layer, since these are few."""
    experts, x, chosen = inputs(converted[0], ids, layer)
    counts = set()
    with tensorfile.opened(files["moments"]) as file:
        seen, reads = file.info("seen"), file.info("reads")
        for index in range(8):
            name = f"model.layers.{layer}.mlp.experts.{index}"
            rows = (chosen == index).any(1)
            n = int(rows.sum())
            counts.add(n)
            with torch.inference_mode():
                gate, up = (x @ experts.gate_up_proj[index].T).chunk(2, dim=1)
                inner = nn.functional.silu(gate) * up
            for leaf, h in (("gate_proj", x), ("up_proj", x), ("down_proj", inner)):
                own, all_of_them, d = h[rows].T @ h[rows], h.T @ h / len(h), h.shape[1]
                expected = own / n if n >= d else (own + (d - n) * all_of_them) / d
                found = from_triangle(file.get(reads[f"{name}.{leaf}"])).double()
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
                assert seen.get(f"{name}.{leaf}", 0) == n
    assert 0 in counts and max(counts) >= WIDTH and any(0 < n < WIDTH for n in counts)


# bytes of a block's own moments: 8 of down's 16 inputs (544 each), 8 of gate's and up's 32 (2,112 each)
@pytest.mark.parametrize(("room", "own"), [(0, (0, 0)), (5 * 544 + 1, (5, 0)), (8 * 544 + 3 * 2112, (8, 3))])
def test_experts_beyond_the_budget_are_lent_their_layers_moment(
    converted: tuple[Path, dict[str, Any]], ids: list[Tensor], files: dict[str, str], tmp_path: Path,
    caplog: pytest.LogCaptureFixture, room: int, own: tuple[int, int],
) -> None:  # fmt: skip
    """Own ones, of the experts with most tokens, and everything else are those of no budget to the bit."""
    from tests import matrix

    checkpoint, record = converted
    paths = {name: str(tmp_path / name) for name in ("channels", "moments")}
    made = {"model_fingerprint": record["fingerprint"]}
    material, compute = Material(checkpoint, Tokens(ids, fingerprint(ids), {}), made), Compute("cpu", torch.float32, 80)
    with caplog.at_level("INFO", "quant"):
        collect(material, *paths.values(), compute, keeping=Keeping(budget_gb=2 * room / 1e9))
    lent = 16 - sum(own)
    said = f"would take 0.042 MB, more than moments.budget_gb allows: {2 * lent} of 32 are lent"
    assert said in caplog.text
    small, before = (tensorfile.opened(each["channels"]) for each in (paths, files))
    with small as found, before as expected:
        assert found.names == expected.names
        assert all(torch.equal(found.get(name), expected.get(name)) for name in expected.names)
    with tensorfile.opened(files["moments"]) as before, tensorfile.opened(paths["moments"]) as after:
        seen, loans, experts = after.info("seen"), after.info("lent"), [n for n in after.names if ".experts." in n]
        assert len(loans) == 2 * lent and not set(loans) & after.names
        assert sum(after.get(name).nbytes for name in experts if name not in loans.values()) <= 2 * room
        assert all(torch.equal(after.get(name), before.get(name)) for name in after.names - set(loans.values()))
        for layer in (0, 1):
            reads, x, chosen = inputs(checkpoint, ids, layer)
            for leaf, n in zip(("down_proj", "up_proj"), own, strict=True):
                path = f"model.layers.{layer}.mlp.experts"
                order = sorted(range(8), key=lambda index: -seen.get(f"{path}.{index}.{leaf}", 0))
                assert [index for index in order if f"{path}.{index}.{leaf}" not in loans] == order[:n]
                rows = [x[(chosen == index).any(1)] for index in range(8)]
                if leaf == "down_proj":
                    halves = [(h @ w.T).chunk(2, 1) for h, w in zip(rows, reads.gate_up_proj.detach(), strict=True)]
                    rows = [nn.functional.silu(gate) * up for gate, up in halves]
                if n < 8:
                    expected = torch.cat(rows).T @ torch.cat(rows) / sum(map(len, rows))
                    pooled = from_triangle(after.get(f"{path}.{leaf}")).double()
                    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    (tmp_path / "results/original").mkdir(parents=True)
    (tmp_path / "results/original/checkpoint").symlink_to(checkpoint)
    done = matrix.quantized(tmp_path, "method", matrix.RECIPE | {"rounding": "gptq"}, record, paths)
    assert {row["linear"] for row in done["rows"] if row["lent"]} == {
        linear for linear, source in reads_of(paths["moments"]).items() if source in loans
    }


# with none, half and all of the experts' own moments; some experts see no token, or none in a shard
@pytest.mark.parametrize("room", [None, 0, 5 * 544 + 1])
def test_shards_give_experts_the_same_statistics(
    converted: tuple[Path, dict[str, Any]], ids: list[Tensor], tmp_path: Path, room: int | None
) -> None:
    tokens, made = Tokens(ids, fingerprint(ids), {}), {"model_fingerprint": converted[1]["fingerprint"]}
    material, keeping = (
        Material(converted[0], tokens, made),
        Keeping(budget_gb=None if room is None else 2 * room / 1e9),
    )
    whole = [str(tmp_path / name) for name in ("channels", "moments", "preactivations")]
    collect(material, whole[0], whole[1], Compute("cpu", torch.float32, 80), whole[2], keeping)
    same(in_shards(material, 4, tmp_path, keeping), whole)


def reads_of(path: str) -> dict[str, str]:
    with tensorfile.opened(path) as file:
        return file.info("reads")


@pytest.mark.parametrize("kind", ["jetmoe", "llama4_text", "longcat_flash"])
def test_no_budget_stores_no_experts_moment_of_its_own(kind: str, tmp_path: Path) -> None:
    """Whichever way experts are called: what reads first is known before the pass, and every linear has a moment."""
    from tests import matrix

    matrix.build(kind).save_pretrained(tmp_path / "model")
    tiny.save_byte_tokenizer(tmp_path / "model")
    folder, paths = tmp_path / "results/original", [str(tmp_path / name) for name in ("channels", "moments")]
    convert({"directory": str(tmp_path / "model")}, folder / "checkpoint", folder / "convert.json")
    record, sequences = tiny.read(folder / "convert.json"), matrix.sequences(3)
    made = {"model_fingerprint": record["fingerprint"]}
    material = Material(folder / "checkpoint", Tokens(sequences, fingerprint(sequences), {}), made)
    collect(material, *paths, Compute("cpu", torch.float32, 60), keeping=Keeping(budget_gb=0))
    of_blocks = list(map(expert_moments.kinds, decoder_blocks(skeleton(folder / "checkpoint"))[1]))
    known = [each for block in of_blocks for each in block]
    sizes = [[[each.width, len(each.readers)] for each in block] for block in of_blocks if block]
    assert record["experts"] == sizes, "what convert records of them"
    with tensorfile.opened(paths[1]) as file:
        loans, reads = file.info("lent"), file.info("reads")
        assert len(loans) == sum(len(each.readers) for each in known) > 0
        assert not set(loans) & file.names and set(loans.values()) <= file.names
        assert set(record["linears"]) <= set(reads)
        for source in set(reads.values()):
            width = file.get(loans.get(source, source)).shape[1] - 1
            assert source not in loans or width == next(e.width for e in known if source.endswith(e.readers))


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_packed_experts_load_in_plain_transformers(
    converted: tuple[Path, dict[str, Any]], files: dict[str, str], tmp_path: Path, rounding: str
) -> None:
    from tests import matrix

    original, record = converted
    (tmp_path / "results/original").mkdir(parents=True)
    (tmp_path / "results/original/checkpoint").symlink_to(original)
    found = matrix.quantized(tmp_path, "method", matrix.RECIPE | {"rounding": rounding}, record, files)
    assert found["summary"]["storage"] == "packed" and found["summary"]["quantized_share"] > 0.5
    tokens = {row["linear"]: row["tokens"] for row in found["rows"]}
    assert tokens["model.layers.0.mlp.experts.6.gate_proj"] == 0 < tokens["model.layers.0.self_attn.q_proj"]
    config = json.loads((tmp_path / "results/method/checkpoint/config.json").read_text())
    assert "model.layers.0.mlp.gate" in config["quantization_config"]["ignore"]


def test_packed_experts_load_beside_another_grid(converted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """An embedding of 8 bits: transformers takes the first group that config.json has for that of all experts."""
    from tests import matrix

    recipe = matrix.RECIPE | {"embeddings": {"bits": 8, "group_size": -1}}
    made = {"recipe": recipe, "model_fingerprint": converted[1]["fingerprint"], "versions": {}}
    statistics = Statistics({}, converted[1]["fingerprint"], matrix.PATTERNS)
    given = Source.of(*converted), Output(tmp_path / "checkpoint", tmp_path / "folds"), statistics
    quantize_checkpoint(*given, Recipe.of(recipe), "cpu", made)
    model = unroll(AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32))
    with stored.opened(tmp_path / "checkpoint") as file:
        for linear in ("model.layers.1.mlp.experts.3.down_proj", "model.layers.0.mlp.experts.0.gate_proj"):
            assert torch.equal(model.get_parameter(f"{linear}.weight"), file.weight(linear))


def test_a_mixture_of_whose_experts_two_see_no_token_evaluates_and_has_a_true_card(
    converted: tuple[Path, dict[str, Any]], ids: list[Tensor], files: dict[str, str], tmp_path: Path
) -> None:
    """What is counted here by hand, from the files: shares, bits, megabytes; and that transformers' own loading says
    what was evaluated."""
    from tests import matrix
    from tests.unit.comparison.studies import ABOUT, CALIBRATION, row

    original, record = converted
    (tmp_path / "results/original").mkdir(parents=True)
    (tmp_path / "results/original/checkpoint").symlink_to(original)
    entry = matrix.RECIPE | {"rounding": "gptq", "n_calib": len(ids)}
    found = matrix.quantized(tmp_path, "gptq", entry, record, files)
    unseen = {f"model.layers.{i}.mlp.experts.{e}.{leaf}_proj" for i in (0, 1) for e in UNSEEN
              for leaf in ("gate", "up", "down")}  # fmt: skip
    assert unseen <= {each["linear"] for each in found["rows"] if not each["tokens"]}
    checkpoint, tokens = tmp_path / "results/gptq/checkpoint", Tokens(ids, fingerprint(ids), {})
    model = load_model(checkpoint, "cpu", torch.float32)
    evaluated, _ = evaluate(model, tokens, "cpu", 80)
    alone = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        for sequence, each in zip(ids, evaluated, strict=True):
            log_p = alone(sequence[None], use_cache=False).logits[0, :-1].log_softmax(-1)
            assert each["nll"] == pytest.approx(-log_p.gather(1, sequence[1:, None]).sum().item(), rel=1e-4)
    before, after = (load_file(folder / "model.safetensors") for folder in (original, checkpoint))
    packed = {name for name in after if name.endswith("weight_packed")}
    share = sum(before[name.removesuffix("_packed")].numel() for name in packed) / sum(
        v.numel() for v in before.values()
    )
    bits = 8 * sum(v.nbytes for name, v in after.items() if "_proj.weight_" in name) / share / sum(
        v.numel() for v in before.values()
    )  # fmt: skip
    assert len(packed) == len(record["linears"]) == 2 * (4 + 3 * 8)
    mb = (checkpoint / "model.safetensors").stat().st_size / 1e6
    summary = found["summary"] | parts_mb(checkpoint / "model.safetensors", model) | {"size_mb": mb}
    rows = pd.DataFrame([row("original", 0.0, 32.0, "original"), row("gptq", 0.1, 4.0) | summary])
    provenance = {"recipe": entry, "versions": {}, "model_fingerprint": "m", "token_fingerprint": tokens.fingerprint}
    made = {"summary": summary, "provenance": provenance}
    text = card("m", "gptq", rows, made, ABOUT, CALIBRATION, "p")  # type: ignore[arg-type]
    assert "in 4 bits, packed as compressed-tensors" in text
    assert f"linear layers ({bits:.3f} bits per weight)" in text
    assert f"{100 * share:.1f} % of the model's weights are quantised" in text and "Less than 90 %" in text
    linears = sum(v.nbytes for name, v in after.items() if "_proj.weight_" in name) / 1e6
    assert f"bits per weight) | {megabytes(linears)} |" in text
    assert "vLLM is not recommended" in text and "from vllm" not in text  # 32 inputs: Marlin has no product


def test_zero_points_of_experts_are_not_packed(
    converted: tuple[Path, dict[str, Any]], files: dict[str, str], tmp_path: Path
) -> None:
    """transformers would read the codes without them."""
    from tests import matrix

    (tmp_path / "results/original").mkdir(parents=True)
    (tmp_path / "results/original/checkpoint").symlink_to(converted[0])
    found = matrix.quantized(tmp_path, "method", matrix.RECIPE | {"symmetric": False}, converted[1], files)
    assert found["summary"]["storage"] == "simulated" and "symmetric: true" in found["summary"]["storage_reason"]


def test_a_shared_scale_takes_the_router_along(
    converted: tuple[Path, dict[str, Any]], files: dict[str, str], tmp_path: Path
) -> None:
    """matrix.quantized holds it against the original with nothing but its linears changed: norm, every expert's gate
    and up, and the router's columns move as one, up's rows against down's columns."""
    from tests import matrix

    original = converted[0]
    (tmp_path / "results/original").mkdir(parents=True)
    (tmp_path / "results/original/checkpoint").symlink_to(original)
    entry = matrix.RECIPE | {"salience": "l2", "scope": "shared"}
    found = matrix.quantized(tmp_path, "method", entry, converted[1], files)
    assert found["summary"]["storage"] == "packed"
    routers = [load_file(f / "model.safetensors")["model.layers.0.mlp.gate.weight"]
               for f in (original, tmp_path / "results/method/checkpoint")]  # fmt: skip
    assert not torch.equal(*routers)


@pytest.mark.parametrize(("kind", "shape"), [("OddExperts", (4, 8, 8)), ("OddExpertGLU", (32, 8))])
def test_another_layout_is_refused_by_name(kind: str, shape: tuple[int, ...]) -> None:
    module = type(kind, (nn.Module,), {})()
    module.weights = nn.Parameter(torch.zeros(shape))
    with pytest.raises(InputError, match=rf"mixture of experts of a layout not known here \({kind}\)"):
        unroll(nn.Sequential(module))


def test_a_linear_without_statistics_is_named() -> None:
    with pytest.raises(InputError, match=r"b\.c: no token of the calibration text reached it"):
        input_of("b.c", {"a": "a"})


def test_a_skeleton_of_a_mixture_has_its_files_names(converted: tuple[Path, dict[str, Any]]) -> None:
    names = set(skeleton(converted[0]).state_dict())
    assert names - {"lm_head.weight"} == set(load_file(converted[0] / "model.safetensors")) - {"lm_head.weight"}
