"""Moments by what an error costs the model, against float64 autograd through the whole model, and against its KL."""

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quant.calibration.embedding_moments import of_module
from quant.calibration.end_loss import collect_end_loss, drawn
from quant.calibration.material import Material
from quant.calibration.parts import row_parts
from quant.calibration.reader import LinearStatistics, Statistics
from quant.calibration.row_moments import collect_row_moments
from quant.calibration.second_moments import from_triangle
from quant.calibration.statistics import collect
from quant.data.tokens import Tokens, fingerprint
from quant.errors import InputError
from quant.evaluation.exact_error import predicted
from quant.files import tensorfile
from quant.models.structure.experts import unroll
from quant.models.structure.linears import all_linears
from quant.recipe.linear import round_linear, targets_of
from quant.recipe.recipe import Recipe
from quant.recipe.search import search_scale
from quant.runtime.compute import Compute
from tests import matrix
from tests.unit import reference
from tests.unit.calibration.architectures import ARCHITECTURES, COMMON, LENGTHS, TUPLES, saved
from tests.unit.recipe.cases import PATTERNS, PLAIN, case, statistics_of

SEED = 5
OF_EXPERTS = {"num_experts": 40, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
MIXTURES = {"qwen3_moe": ("Qwen3MoeConfig", COMMON | OF_EXPERTS)}
KNOWN = ARCHITECTURES | TUPLES | MIXTURES
NAMES = ["llama", "granite", "gemma2", "qwen2", "gpt_neox", "opt_350m", "falcon", "qwen3_moe"]


class Whole(NamedTuple):
    """A checkpoint and sequences; by linear, x [tokens, in] and ∂ℓ/∂z [tokens, out] in float64; of the head and the
    embedding by their names too, ids [tokens] in place of the latter's x."""

    path: Path
    sequences: list[Tensor]
    model: nn.Module
    x: dict[str, np.ndarray]
    gradient: dict[str, np.ndarray]
    head: str
    embedding: str


def whole(name: str, path: Path) -> Whole:
    from transformers import AutoModelForCausalLM

    saved(*KNOWN[name], path)
    model = unroll(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager").eval())
    generator = torch.Generator().manual_seed(3)
    sequences = [torch.randint(3, 256, (length,), generator=generator) for length in LENGTHS]
    at = {id(module): name for name, module in model.named_modules()}
    head, embedding = (at[id(each)] for each in (model.get_output_embeddings(), model.get_input_embeddings()))
    names = [*all_linears(model), head, embedding]
    x: dict[str, list[Tensor]] = {each: [] for each in names}
    z: dict[str, list[Tensor]] = {each: [] for each in names}

    def keep(linear: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            out.retain_grad()
            x[linear].append(args[0].detach().reshape(-1, args[0].shape[-1] if linear != embedding else 1))
            z[linear].append(out)

        return hook

    hooks = [model.get_submodule(each).register_forward_hook(keep(each)) for each in names]
    labels = torch.Generator().manual_seed(SEED)
    for sequence in sequences:
        log_p = model(sequence[None], use_cache=False).logits[0].log_softmax(-1)
        chosen = drawn(log_p.detach(), labels)
        (-log_p.gather(1, chosen[:, None]).sum()).backward()
    for each in hooks:
        each.remove()
    gradients, inputs = {}, {}
    for each in names:
        n_out, n_in = model.get_parameter(f"{each}.weight").shape  # of an expert that no token reaches, no row
        none = torch.empty(0, n_out if each != embedding else n_in, dtype=torch.float64)
        gradients[each] = torch.cat([none, *(t.grad.reshape(-1, t.shape[-1]) for t in z[each])]).numpy()
        inputs[each] = torch.cat(x[each] or [torch.empty(0, n_in, dtype=torch.float64)]).numpy()
    return Whole(path, sequences, model, inputs, gradients, head, embedding)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    made: dict[str, Whole] = {}

    def case_of(name: str) -> Whole:
        if name not in made:
            made[name] = whole(name, tmp_path_factory.mktemp(name))
        return made[name]

    return case_of


@pytest.mark.parametrize("name", NAMES[:2])
def test_moments_of_outputs_equal_autograd(cases: Callable[[str], Whole], name: str, tmp_path: Path) -> None:
    """Of every linear of the blocks, in ragged batches."""
    case, path = cases(name), tmp_path / "rows.safetensors"
    material = Material(case.path, Tokens(case.sequences, fingerprint(case.sequences), {}), {"model_fingerprint": "m"})
    collect_row_moments(material, str(path), SEED, Compute("cpu", torch.float32, 18))
    with tensorfile.opened(path) as file:
        gradients = {each: g for each, g in case.gradient.items() if each not in (case.head, case.embedding)}
        assert file.names == {f"{linear}.rows" for linear in gradients}
        for linear, g in gradients.items():
            expected = g.T.astype(np.float64) @ g / len(g)
            found = from_triangle(file.get(f"{linear}.rows")).numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * expected.diagonal().max())


def collected(case: Whole, out: Path, parts: int, batch_tokens: int = 18) -> Path:
    tokens = Tokens(case.sequences, fingerprint(case.sequences), {})
    material = Material(case.path, tokens, {"model_fingerprint": "m"})
    collect_end_loss(material, str(out), parts, SEED, Compute("cpu", torch.float32, batch_tokens))
    assert [each.name for each in out.parent.iterdir() if each.name.startswith(".end_loss")] == []
    return out


@pytest.mark.parametrize(("parts", "batch_tokens"), [(1, 1), (4, 18)])
@pytest.mark.parametrize("name", NAMES)
def test_collected_equals_autograd(
    cases: Callable[[str], Whole], name: str, parts: int, batch_tokens: int, tmp_path: Path
) -> None:
    """Alone, and in ragged batches: were padding counted, every mean would be off."""
    case = cases(name)
    path = collected(case, tmp_path / "end_loss.safetensors", parts, batch_tokens)
    with tensorfile.opened(path) as file:
        keys = ("moment", "omega", "fisher", "x_abs", "x_sq", "x_mean")
        ends = {case.head} | ({case.embedding} if name != "opt_350m" else set())  # whose rows are projected first
        linears = {linear: x for linear, x in case.x.items() if linear not in (case.head, case.embedding)}
        expected_names = {f"{linear}.{key}" for linear in linears for key in keys}
        assert file.names == expected_names | {f"{end}.{key}" for end in ends for key in ("moment", "rows")}
        check_ends(case, file, ends)
        for linear, x in linears.items():
            square = case.gradient[linear] ** 2
            bounds = [k * square.shape[1] // parts for k in range(parts + 1)]
            omegas = [square[:, start:stop].mean(1) for start, stop in pairwise(bounds)]
            expected = {
                "omega": np.array(omegas),
                "fisher": np.array([omega.sum() / sum(LENGTHS) for omega in omegas]),
            }
            if len(x):
                expected["moment"] = np.stack([reference.weighted_moment(x, omega.tolist()) for omega in omegas])
                for key, value in (("x_abs", np.abs(x)), ("x_sq", x**2), ("x_mean", x)):
                    expected[key] = np.average(value, axis=0, weights=square.mean(1))
            else:  # of an expert that no token reaches
                expected |= {key: np.zeros(x.shape[1]) for key in ("x_abs", "x_sq", "x_mean")}
                expected["moment"] = np.zeros((parts, x.shape[1], x.shape[1]))
            for key, value in expected.items():
                found = file.get(f"{linear}.{key}")
                found = torch.stack([from_triangle(each) for each in found]) if key == "moment" else found
                limit = 2e-4 * np.abs(value).max(initial=0)
                np.testing.assert_allclose(found.numpy(), value, rtol=2e-3, atol=limit, err_msg=f"{linear}.{key}")
        assert (name in MIXTURES) == any(len(x) == 0 for x in linears.values())
        assert file.info("provenance")["parts"] == parts


def check_ends(case: Whole, file: tensorfile.TensorFile, ends: set[str]) -> None:
    """What an error in any direction of any row costs, against the gradients of every token."""
    for end in ends:
        moment, rows = (each.double().numpy() for each in of_module(file, end))
        gradient = case.gradient[end]
        if end == case.head:
            square = gradient**2
            wanted, shares = reference.weighted_moment(case.x[end], square.sum(1).tolist()), square.mean(0)
        else:
            gradient = gradient * float(getattr(case.model.get_submodule(end), "embed_scale", 1))  # within the module
            counts = np.bincount(case.x[end][:, 0].astype(int), minlength=len(rows))
            once = min(0.5, (counts == 1).sum() / counts.sum())
            shares = np.where(counts == 0, once / (counts == 0).sum(), counts / counts.sum() * (1 - once))
            wanted = gradient.T @ gradient / len(gradient)
        np.testing.assert_allclose(moment, wanted, rtol=2e-3, atol=2e-4 * np.abs(wanted).max(), err_msg=end)
        np.testing.assert_allclose(rows, shares, rtol=2e-3, atol=1e-5 * shares.max(), err_msg=end)


def test_labels_are_drawn_from_the_distribution() -> None:
    p = torch.zeros(600, dtype=torch.float64)  # of more than one span
    p[[0, 255, 256, 300, 599]] = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64)
    found = drawn(p.log().expand(40000, 600), torch.Generator().manual_seed(0))
    share = torch.bincount(found, minlength=600).double() / len(found)
    assert (share[p == 0] == 0).all() and (share - p).abs().max() < 0.01
    assert torch.equal(found, drawn(p.log().expand(40000, 600), torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("parts", [1, 4])
def test_the_prediction_is_what_a_small_change_costs(cases: Callable[[str], Whole], parts: int, tmp_path: Path) -> None:
    """KL of the whole model in float64, over random small changes of one linear at a time, in nats a token."""
    case = cases("llama")
    many = case._replace(sequences=case.sequences * 40)  # labels drawn anew
    path = collected(many, tmp_path / "end_loss.safetensors", parts, 256)
    generator = torch.Generator().manual_seed(1)
    tokens = sum(LENGTHS)
    with torch.no_grad(), tensorfile.opened(path) as file:
        before = [case.model(each[None], use_cache=False).logits[0].log_softmax(-1) for each in case.sequences]
        for linear in ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj", "model.layers.2.mlp.down_proj"):
            moments = torch.stack([from_triangle(each) for each in file.get(f"{linear}.moment")]).double()
            costs, predictions = [], []
            changed = copy.deepcopy(case.model)
            weight = changed.get_submodule(linear).weight
            own = weight.detach().clone()
            for _ in range(40):
                difference = 1e-4 * torch.randn(own.shape, generator=generator, dtype=torch.float64)
                weight.copy_(own + difference)
                after = [changed(each[None], use_cache=False).logits[0].log_softmax(-1) for each in case.sequences]
                kl = sum((p.exp() * (p - q)).sum().item() for p, q in zip(before, after, strict=True))
                costs.append(kl / tokens)
                predictions.append(predicted(difference, moments, file.get(f"{linear}.fisher")))
            assert np.mean(predictions) == pytest.approx(np.mean(costs), rel=0.15), linear


@pytest.mark.parametrize("parts", [1, 4])
def test_recipes_read_it(cases: Callable[[str], Whole], parts: int, tmp_path: Path) -> None:
    case, paths = cases("llama"), {key: str(tmp_path / f"{key}.safetensors") for key in ("channels", "moments")}
    tokens = Tokens(case.sequences, fingerprint(case.sequences), {})
    material = Material(case.path, tokens, {"model_fingerprint": "m"})
    collect(material, *paths.values(), Compute("cpu", torch.float32, 18))
    path = str(collected(case, tmp_path / "end_loss.safetensors", parts))
    linear = "model.layers.1.self_attn.q_proj"
    with (
        tensorfile.opened(path) as file,
        Statistics(paths | {"weighted": path}, "m", PATTERNS, plain_share=0.25) as statistics,
    ):
        found = statistics.of(linear, "cpu")
        weighted = torch.stack([from_triangle(each) for each in file.get(f"{linear}.moment")])
        expected = 0.75 * weighted.double() + 0.25 * torch.from_numpy(reference.second_moment(case.x[linear]))
        assert found.moment.ndim == (2 if parts == 1 else 3)
        np.testing.assert_allclose(found.moment.view(expected.shape), expected, rtol=1e-4, atol=1e-5)
        x_sq = 0.75 * file.get(f"{linear}.x_sq").double() + 0.25 * torch.from_numpy((case.x[linear] ** 2).mean(0))
        np.testing.assert_allclose(found.channels.x_sq, x_sq, rtol=1e-4, atol=1e-6)
        assert torch.equal(found.fisher, file.get(f"{linear}.fisher"))


def in_parts(parts: int) -> tuple[Tensor, LinearStatistics, list[LinearStatistics]]:
    """A weight, its statistics with a moment for each part of its rows, and each part's own, in float64."""
    w, x = case()
    known = statistics_of(w, x, True)
    rng = np.random.default_rng(2)
    fisher = torch.from_numpy(rng.uniform(1, 3, parts))
    moments = [torch.from_numpy(reference.weighted_moment(x, rng.exponential(size=len(x)).tolist())) for _ in fisher]
    whole = LinearStatistics(known.channels, torch.stack(moments), fisher=fisher)
    return torch.from_numpy(w), whole, [LinearStatistics(known.channels, moment) for moment in moments]


@pytest.mark.parametrize("refine", [0, 2])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_each_part_is_rounded_by_its_own_moment(rounding: str, refine: int) -> None:
    w, whole, alone = in_parts(4)
    recipe = Recipe.of(PLAIN | {"rounding": rounding, "refine": refine, "clip": True, "bits": 3})
    factor = torch.rand(len(w), 1, 1, generator=torch.Generator().manual_seed(0), dtype=w.dtype) + 0.5
    found = round_linear(w, None, whole, recipe, torch.Generator(), lambda step: step * factor)
    for rows, own in zip(row_parts(len(w), 4), alone, strict=True):
        expected = round_linear(
            w[rows], None, own, recipe, torch.Generator(), lambda step, rows=rows: step * factor[rows]
        )
        for key in ("codes", "step", "zero"):
            assert torch.equal(getattr(found, key)[rows], getattr(expected, key)), key


def test_the_search_weighs_parts_by_their_information() -> None:
    w, whole, alone = in_parts(4)
    recipe = Recipe.of(PLAIN | {"salience": "l2", "bits": 3})
    salience = whole.channels.x_sq
    found = search_scale(targets_of(w, whole, recipe), salience, recipe.grid, 20)
    errors = []
    for step in range(21):
        rounded = reference.scaled_rounded(w.numpy(), salience.numpy(), step / 20, 3, -1, False)
        total = sizes = 0.0
        for rows, own, weight in zip(row_parts(len(w), 4), alone, whole.fisher.tolist(), strict=True):
            difference = (w.numpy() - rounded)[rows]
            total += weight * float(np.einsum("ki,ij,kj->", difference, own.moment.numpy(), difference))
            sizes += weight * len(difference)
        errors.append(total / sizes)
    assert found.alpha == int(np.argmin(errors)) / 20
    assert found.objective == pytest.approx(min(errors), rel=1e-6)


def test_two_runs_are_bit_identical(cases: Callable[[str], Whole], tmp_path: Path) -> None:
    first, second = (collected(cases("granite"), tmp_path / name, 4).read_bytes() for name in "ab")
    assert first == second


def test_blocks_that_hand_on_more_than_a_state_a_token_are_refused(tmp_path: Path) -> None:
    """Gemma 3n's four streams."""
    matrix.build("gemma3n_text").save_pretrained(tmp_path)
    tokens = Tokens([torch.arange(9), torch.arange(7)], "f", {})
    with pytest.raises(InputError, match=r"layers.0: puts out \[4, 2, 9, 32\] where its model reads \[2, 9\] tokens"):
        collect_end_loss(Material(tmp_path, tokens, {}), str(tmp_path / "out"), 1, 0, Compute("cpu", torch.float32, 18))
