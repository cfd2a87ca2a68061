"""Tuning: gradients against finite differences in float64, what is kept, and the file that comes of it."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quant.calibration.reader import Statistics
from quant.data.tokens import batches
from quant.errors import InputError
from quant.files import tensorfile
from quant.files.stage import hidden
from quant.methods.quantize import Kept, quantize_checkpoint
from quant.methods.source import Output, Source
from quant.methods.with_model import insides, quantize
from quant.methods.with_model.kl_loss import divergence
from quant.methods.with_model.quantize import quantize_with_model
from quant.methods.with_model.teacher import Teacher
from quant.methods.with_model.tune import Known, Tuner, Tuning, load_original, rate_at
from quant.models.structure.linears import all_linears, decoder_blocks, skeleton
from quant.recipe.recipe import Recipe
from quant.runtime.compute import Compute
from tests.unit import reference
from tests.unit.methods.with_model.given import CALIBRATION, SEQUENCES, TUNE, loaded, slow_divergence
from tests.unit.recipe.cases import PATTERNS, PLAIN, recast
from tests.unit.recipe.folded import MADE, Case


def run(case: Case, target: Path, **changes: Any) -> dict[str, Any]:
    recipe = PLAIN | {"salience": "l2", "scope": "shared", "n_grid": 4, "group_size": 16, "tune": TUNE} | changes
    names, statistics = all_linears(skeleton(case.path)), Statistics(case.paths, "m", PATTERNS)
    ends: Any = {"embedding": "model.embed_tokens", "head": "lm_head", "tied": case.model.config.tie_word_embeddings}
    source = Source(case.path, names, embeddings=ends | {"unread": ""})
    given = (source, Output(target, target.with_suffix(".folds")), statistics, recipe, CALIBRATION)
    return quantize_with_model(*given, Compute("cpu", torch.float32, 64), MADE)


def tuner_of(case: Case, target: Path, dtype: torch.dtype = torch.float64) -> Tuner:
    """Of a checkpoint that was not tuned, in float64."""
    held = Kept()
    recipe = PLAIN | {"salience": "l2", "scope": "shared", "n_grid": 4, "group_size": 16, "bits": 3}
    names, statistics = all_linears(skeleton(case.path)), Statistics(case.paths, "m", PATTERNS)
    given = (Source(case.path, names), Output(target, target.with_suffix(".folds")), statistics)
    quantize_checkpoint(*given, Recipe.of(recipe), "cpu", MADE, keep=held)
    with tensorfile.opened(target / "model.safetensors") as file:
        return Tuner(load_original(case.path, "cpu", dtype), file, held.linears, "cpu")


def test_the_divergence_is_that_of_two_plain_models(models: Callable[[str], Case], tmp_path: Path) -> None:
    case = models("llama_bias")
    tuner = tuner_of(case, tmp_path, torch.float32)
    assert tuner.measure(SEQUENCES) == pytest.approx(slow_divergence(case, tmp_path), rel=1e-3)
    assert tuner.gradients(one_by_one()).item() == pytest.approx(tuner.measure(SEQUENCES), rel=1e-3)


@pytest.mark.parametrize("name", ["llama_bias", "gemma2", "phi3"])
def test_gradients_equal_finite_differences(models: Callable[[str], Case], name: str, tmp_path: Path) -> None:
    """Along random directions of each kind of parameter; in float64, but for the norms, which are in float32."""
    tuner = tuner_of(models(name), tmp_path)
    assert len(tuner.norms) == 5
    tuner.student.double()
    for parameter in tuner.parameters:
        parameter.grad = None
    tuner.gradients(one_by_one())
    generator = torch.Generator().manual_seed(0)
    some = [tuner.parameters[i] for i in (0, 3, 6, len(tuner.linears), len(tuner.parameters) - 1)]
    for parameter in some:
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        wanted = (parameter.grad * direction).sum().item()
        losses = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                parameter += sign * 1e-3 * direction
            if sign != 1 or not losses:
                losses.append(sum(tuner._sum(*part).item() for part in one_by_one()) / sum(map(len, SEQUENCES)))
        assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(wanted, rel=0.01)


def test_gradients_are_the_same_whatever_blocks_keep(
    models: Callable[[str], Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing, the last one's insides, or all; the first batch is the smallest."""
    found = []
    for most in (0, 150_000, 2**30):
        monkeypatch.setattr(insides, "room", lambda device, most=most: most)
        tuner = tuner_of(models("llama_bias"), tmp_path / str(most), torch.float32)
        again: list[int] = []
        own = insides.checkpoint
        monkeypatch.setattr(
            insides, "checkpoint", lambda *a, own=own, again=again, **k: again.append(1) or own(*a, **k)
        )
        tuner.gradients(one_by_one())
        monkeypatch.setattr(insides, "checkpoint", own)
        found.append((len(again), [each.grad for each in tuner.parameters]))
    assert [n for n, _ in found] == [6, 3, 0]
    for _, gradients in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(gradients, found[0][1], strict=True))


def one_by_one() -> list[Known]:
    return [Known(batch) for batch in batches(SEQUENCES, 1)]


# groups of 14 do not divide the inputs
@pytest.mark.parametrize(
    ("bits", "size", "storage", "ends"),
    [
        (4, 16, "packed", None),
        (3, 14, "simulated", None),
        (2, 16, "packed", {"bits": 4, "group_size": 16}),  # the embedding too, while steps are tuned
    ],
)
def test_the_file_is_what_was_measured(
    models: Callable[[str], Case],
    bits: int,
    size: int,
    storage: str,
    ends: dict[str, int] | None,
    tmp_path: Path,
) -> None:
    case = models("llama")
    record = run(case, tmp_path / "tuned", bits=bits, group_size=size, embeddings=ends)
    plain = run(case, tmp_path / "plain", bits=bits, group_size=size, tune=None, embeddings=ends)
    tuning = record["tuning"]
    assert record["summary"]["storage"] == storage and "tuning" not in plain
    assert tuning["epoch"] > 0 and tuning["kl_tuned"] < 0.95 * tuning["kl_start"]
    assert slow_divergence(case, tmp_path / "tuned") < 0.95 * slow_divergence(case, tmp_path / "plain")
    drawn = torch.randperm(3, generator=torch.Generator().manual_seed(42)).tolist()
    (held,) = [SEQUENCES[i] for i in drawn[:1]]
    with torch.inference_mode():
        p, q = (m(held[None]).logits[0].double().numpy() for m in (case.model, loaded(tmp_path / "tuned")))
    assert tuning["kl_tuned"] == pytest.approx(np.mean(reference.kl(p, q)), rel=1e-3)
    with tensorfile.opened(tmp_path / "tuned/model.safetensors") as file:
        assert file.info("provenance") == record["provenance"]
        changed = {name for name in file.names if not torch.equal(file.get(name), other(tmp_path / "plain", name))}
    ends = ("weight_scale", "norm.weight") if storage == "packed" else ("proj.weight", "norm.weight")
    assert len(changed) == 14 + 5 and all(name.endswith(ends) for name in changed)


def other(folder: Path, name: str) -> Tensor:
    with tensorfile.opened(folder / "model.safetensors") as file:
        return file.get(name)


def test_a_start_that_cannot_be_bettered_is_kept(
    models: Callable[[str], Case],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = models("llama")
    record = run(case, tmp_path / "tuned", tune=TUNE | {"rate": 1.0})
    run(case, tmp_path / "plain", tune=None)
    assert record["tuning"]["epoch"] == 0 and record["tuning"]["kl_tuned"] == record["tuning"]["kl_start"]
    assert "the start is kept" in caplog.text
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("tuned", "plain")]
    assert files[0] == files[1]


def test_twice_the_same_to_the_bit(models: Callable[[str], Case], tmp_path: Path) -> None:
    for name in "ab":
        run(models("llama"), tmp_path / name, inputs="sequential", correction=0.5, rounding="gptq")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_folds_follow_the_norms(models: Callable[[str], Case], name: str, tmp_path: Path) -> None:
    """What a norm now puts out, times what its linears hold, is what they were to give: once with a fold of an earlier
    scale and once without one."""
    case, ends = models(name), {"input_layernorm": "self_attn.q_proj", "post_attention_layernorm": "mlp.up_proj"}
    for salience in ("l2", "none"):
        scope, target = ("shared" if salience == "l2" else "linear"), tmp_path / salience
        record = run(case, target, bits=2, salience=salience, scope=scope)
        assert record["tuning"]["epoch"] > 0
        offset = 1.0 if name == "gemma" else 0.0
        for end, linear in ends.items():
            before, after = (other(path, f"model.layers.1.{end}.weight") for path in (case.path, target))
            with tensorfile.opened(target.with_suffix(".folds")) as folds:
                fold = folds.get(f"model.layers.1.{linear}.input")
            assert not torch.equal(before, after)
            torch.testing.assert_close((after + offset) * fold, before + offset, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_channel_of_nothing_stays_nothing(models: Callable[[str], Case], name: str, tmp_path: Path) -> None:
    """No fold would say what its linears get of it."""
    case, end, nothing = models(name), "model.layers.1.input_layernorm.weight", -1.0 if name == "gemma" else 0.0

    def silence(tensors: dict[str, Tensor]) -> None:
        tensors[end][:3] = nothing

    source = case._replace(path=recast(case.path, tmp_path / "source", silence))
    assert run(source, tmp_path / "out", bits=2)["tuning"]["epoch"] > 0
    after = other(tmp_path / "out", end)
    assert (after[:3] == nothing).all() and not torch.equal(after, other(source.path, end))
    with tensorfile.opened((tmp_path / "out").with_suffix(".folds")) as folds:
        fold = folds.get("model.layers.1.self_attn.q_proj.input")
    assert torch.isfinite(fold).all() and (fold > 0).all()


@pytest.mark.parametrize("n", [1, 4])
def test_divergence_is_the_textbooks(n: int) -> None:
    p, q = torch.randn(2, n, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = sum(reference.kl(p.numpy(), q.numpy()))
    assert divergence(p, q).item() == pytest.approx(wanted, rel=1e-5)
    p[:, 2] = -math.inf
    assert math.isfinite(divergence(p, q).item())


@pytest.mark.parametrize("at_once", [1, 22, 2**20])
def test_gradients_of_the_divergence_are_autograds(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant.methods.with_model.kl_loss.AT_ONCE", at_once)
    p, q = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p[:, 2] = -math.inf
    q.requires_grad_()
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    wanted = torch.where(p > -math.inf, log_p.exp() * (log_p - log_q), 0.0).sum() / 7
    (gradient,) = torch.autograd.grad(wanted, q)
    found = divergence(p, q) / 7
    found.backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(q.grad, gradient)


@pytest.mark.parametrize("name", ["llama_bias", "gemma2", "granite"])
def test_kept_states_of_the_original_make_its_logits(models: Callable[[str], Case], name: str) -> None:
    teacher = Teacher(load_original(models(name).path, "cpu", torch.float32), "cpu")
    kept = teacher.keep(SEQUENCES, 40)
    assert kept is not None
    for ids, states in zip(SEQUENCES, kept, strict=True):
        torch.testing.assert_close(teacher.logits(ids[None], states[None]), teacher.logits(ids[None]))


def test_an_original_whose_head_reads_more_than_its_last_block_runs_whole(models: Callable[[str], Case]) -> None:
    model = load_original(models("llama").path, "cpu", torch.float32)
    teacher, first, own = Teacher(model, "cpu"), [], model.forward
    decoder_blocks(model)[1][0].register_forward_hook(lambda module, args, out: first.append(out))

    def forward(**given: Any) -> Any:
        out = own(**given)
        out.logits = out.logits + first[-1].mean()
        return out

    vars(model)["forward"] = forward
    assert teacher.keep(SEQUENCES, 40) is None


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [rate_at(step, 100) for step in range(101)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[5:] == sorted(rates[5:], reverse=True) and rate_at(0, 1) == 1


def test_nothing_untuned_ever_has_a_final_name(
    models: Callable[[str], Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a job that is killed leaves while it tunes, and again while it writes what it tuned."""
    target, tune, write = tmp_path / "method/checkpoint", Tuner.tune, quantize.rewrite
    left = tmp_path / "method/.tuned.killed"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"of a job before")
    seen: list[set[str]] = []

    def look() -> None:
        files = [path.relative_to(tmp_path / "method") for path in (tmp_path / "method").rglob("*") if path.is_file()]
        seen.append({str(path) for path in files if not path.parts[0].startswith(".")})
        assert not left.exists() and len(files) > 3

    monkeypatch.setattr(Tuner, "tune", lambda *given: (look(), tune(*given))[1])
    monkeypatch.setattr(quantize, "rewrite", lambda *given: (write(*given), look())[0])
    run(models("llama"), target)
    assert seen == [set(), set()]
    monkeypatch.undo()
    run(models("llama"), tmp_path / "plain/checkpoint")
    made, alike = (sorted(path for path in (tmp_path / name).rglob("*")) for name in ("method", "plain"))
    assert [path.name for path in made] == [path.name for path in alike] and "config.json" in {p.name for p in made}
    assert all(a.is_dir() or a.read_bytes() == b.read_bytes() for a, b in zip(made, alike, strict=True))


def test_a_refusal_in_a_folder_of_its_own_names_the_final_file(tmp_path: Path) -> None:
    odd = f"^{re.escape(str(tmp_path))}/checkpoint: is odd$"
    with pytest.raises(InputError, match=odd), hidden(tmp_path, "made") as folder:
        (folder / "checkpoint").mkdir()
        raise InputError(f"{folder}/checkpoint: is odd")
    assert list(tmp_path.iterdir()) == []


def test_one_sequence_is_refused(models: Callable[[str], Case], tmp_path: Path) -> None:
    tuner = tuner_of(models("llama"), tmp_path, torch.float32)
    with pytest.raises(InputError, match="leaves none to hold out"):
        tuner.tune(SEQUENCES[:1], Tuning.of(TUNE), 0)
