"""A GPU against the CPU: kernels to the bit, searches by their α, statistics and evaluation by their numbers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN

import int4_speed
from quant.calibration import hidden
from quant.calibration.blocks import Run
from quant.calibration.channels import Channels
from quant.calibration.material import Material
from quant.calibration.noisy import Noise, NoisySums
from quant.calibration.reader import LinearStatistics, Statistics
from quant.calibration.second_moments import add_outer, from_triangle, halves, layer_error, mirror
from quant.calibration.statistics import collect
from quant.calibration.sums import column_sums, output_sums
from quant.data.tokens import Tokens, fingerprint
from quant.evaluation import perplexity
from quant.evaluation.divergence import Reference
from quant.evaluation.head import Head
from quant.files import tensorfile
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.models.structure.linears import all_linears, skeleton
from quant.recipe import grids, kernels
from quant.recipe.context import Context
from quant.recipe.grids import Grid
from quant.recipe.kernels import feed_back, grid_kernels
from quant.recipe.recipe import Recipe
from quant.recipe.roundings.gptq import gptq
from quant.recipe.search import Target, candidate_errors, search_scale, target_error
from quant.runtime.compute import Compute
from tests.gpu.cases import GRIDS, case
from tests.unit.checkpoints.codes import codes_of
from tests.unit.group import quantize_group
from tests.unit.recipe.cases import PLAIN

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("bits", "group_size", "symmetric"), GRIDS)
def test_candidates_are_those_of_a_cpu_to_the_bit(bits: int, group_size: int, symmetric: bool, clip: bool) -> None:
    w, moment = case(37, 200, bits)
    scales = torch.rand(5, 200, generator=torch.Generator().manual_seed(1)) + 0.2
    importance = moment.diagonal() / scales**2 if clip else [None] * 5
    grid, unit = Grid(bits, group_size, symmetric), torch.rand(200)
    found = [grids.nearest(w * s, grid, i).div_(s) for s, i in zip(scales, importance, strict=True)]
    expected = ((torch.stack(found) - w) * unit).half()
    clipped_by = importance.cuda() if clip else None
    d, _ = grid_kernels().differences(w.cuda(), scales.cuda(), grid, clipped_by, moment.cuda(), unit.cuda(), None, 0.0)
    # errors of two factors may tie to the last bits, which 1/step and the sum's order decide
    assert (d[:, :, :200].cpu() != expected).float().mean() <= (0.002 if clip else 0)
    assert not d[:, :, 200:].any()


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), GRIDS)
def test_clipped_ranges_are_those_of_a_cpu(bits: int, group_size: int, symmetric: bool) -> None:
    w, moment = case(37, 200, bits)
    grid = Grid(bits, group_size, symmetric)
    groups, importance = grids.to_groups(w, group_size), moment.diagonal()
    expected = torch.stack(grids.fit_range(groups, grid, importance))
    found = torch.stack(kernels.fit_range(groups.cuda(), grid, importance.cuda())).cpu()
    assert (found != expected).float().mean() <= 0.002


def nearest_there(w: Tensor, grid: Grid, importance: Tensor | None) -> Tensor:
    """grids.nearest on the ranges that the GPU finds."""
    groups = grids.to_groups(w, grid.group_size)
    ranges = kernels.fit_range(groups.cuda(), grid, None if importance is None else importance.cuda())
    step, zero = (each.cpu() for each in ranges)
    return grids.from_groups(grids.decode(grids.encode(groups, step, zero, grid), step, zero), w.shape[1])


@pytest.mark.parametrize(
    ("n_out", "n_in", "group_size"), [(3, 64, 16), (129, 130, -1), (300, 577, 64), (257, 2304, 128)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_candidate_errors_are_those_of_float64(n_out: int, n_in: int, group_size: int, weighted: bool) -> None:
    """With dead inputs, and one that is a thousand times as loud; on the GPU's ranges, since of two factors that clip
    equally well a CPU's sum may choose the other."""
    torch.manual_seed(n_out)
    w, moment = case(n_out, n_in, n_out)
    loud = torch.ones(n_in)
    loud[1], loud[5] = 1000, 0
    moment *= loud * loud[:, None]
    weight = torch.rand(n_out) ** 4 if weighted else None
    target = Target(w, moment, weight, 0.3 if weighted else 0.0)
    scales, grid = torch.rand(7, n_in) + 0.2, Grid(4, group_size, False)
    exact = Target(w.double(), moment.double(), None if weight is None else weight.double(), target.noise)
    for clip in (False, True):
        importance = moment.diagonal() / scales**2 if clip else [None] * 7
        expected = torch.stack([
            target_error(exact, nearest_there(w * s, grid, i).div_(s).double(), halves(exact.moment))
            for s, i in zip(scales, importance, strict=True)
        ])  # fmt: skip
        there = Target(w.cuda(), moment.cuda(), None if weight is None else weight.cuda(), target.noise)
        found = candidate_errors(there, scales.cuda(), grid, clip).cpu()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("width", [128, 37])
@pytest.mark.parametrize("grid", [Grid(4, -1, False), Grid(4, -1, True, "iq4_nl"), Grid(3, -1, True, "q3_k")])
def test_fused_feedback_is_that_of_a_cpu(width: int, transposed: bool, grid: Grid) -> None:
    """Whichever way the tensors lie: a triangular solve gives its result by columns."""
    generator = torch.Generator().manual_seed(width)
    w, factor = torch.randn(300, 400, generator=generator), torch.randn(400, 400, generator=generator).triu_() / 20
    factor.diagonal().uniform_(0.5, 1.5, generator=generator)
    steps = (0.1 + torch.rand(300, 400, generator=generator)) * 8 / grid.highest
    steps = steps * torch.randn(steps.shape, generator=generator).sign() if grid.signed else steps
    zeros, now = torch.full_like(steps, 0.0 if grid.symmetric else 7.0), slice(100, 100 + width)
    kept = [torch.empty_like(w), torch.empty_like(w).cuda()]

    def lay(t: Tensor) -> Tensor:
        return t.T.contiguous().T if transposed else t

    left = [torch.empty_like(codes)[:, now] for codes in kept]
    for codes, errors in zip(kept, left, strict=True):
        given = (lay(t.to(codes.device)) for t in (w[:, now], factor[now, now], steps[:, now], zeros[:, now]))
        feed_back(*given, grid, codes[:, now], errors)
    assert (kept[0][:, now] != kept[1][:, now].cpu()).float().mean() < 1e-3
    assert torch.allclose(left[0], left[1].cpu(), atol=1e-3)


@pytest.mark.parametrize(("n_out", "n_in", "group_size"), [(576, 1536, 64), (500, 577, -1), (256, 2304, 128)])
def test_gptq_leaves_the_error_that_a_cpu_leaves(n_out: int, n_in: int, group_size: int) -> None:
    w, moment = case(n_out, n_in)
    grid = Grid(4, group_size, False)
    errors, codes = [], []
    for where in ("cpu", "cuda"):
        groups, context = grids.to_groups(w.to(where), group_size), Context(moment.to(where))
        step, zero = grids.fit(groups, grid)
        found = gptq(groups, step, zero, grid, context, damp=0.01)
        rounded = grids.from_groups(grids.decode(found.codes, step, zero), n_in).cpu()
        errors.append(layer_error(w - rounded, moment))
        codes.append(found.codes.cpu())
    assert errors[1] == pytest.approx(errors[0], rel=1e-2)
    print(f"gptq {n_out}x{n_in}: {(codes[0] == codes[1]).float().mean():.4f} of codes equal, errors {errors}")


RECIPES: list[dict[str, object]] = [
    {"rounding": "gptq"},
    {"rounding": "gptq", "clip": True, "salience": "l2"},
    {"salience": "l1"},
    {"salience": "praq", "objective": "praq", "symmetric": True, "group_size": -1},
    {"salience": "l2", "rounding": "greedy_flip"},
    {"clip": True},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: "-".join(map(str, r.values())))
def test_a_recipe_leaves_the_error_that_a_cpu_leaves(recipe: dict[str, object]) -> None:
    """From weights and statistics to the weight as stored, two linears on one scale."""
    generator = torch.Generator().manual_seed(5)
    x = case(1, 512)[1]
    cases = [case(n_out, 512, seed)[0] for seed, n_out in enumerate((384, 300))]
    chosen = Recipe.of(PLAIN | {"bits": 4, "group_size": 128, "n_grid": 20} | recipe)
    results = {}
    for where in ("cpu", "cuda"):
        known = []
        for w in cases:
            of_output = [torch.rand(len(w), generator=generator.manual_seed(6)) for _ in range(4)]
            of_input = x.diagonal().sqrt(), x.diagonal(), 0.3 * x.diagonal().sqrt()
            channels = Channels(*(t.to(where) for t in (*of_input, *of_output)), is_mlp=True)
            known.append(LinearStatistics(channels, x.to(where)))
        results[where] = quantize_group([w.to(where) for w in cases], known, chosen, generator)
    for w, a, b in zip(cases, results["cpu"], results["cuda"], strict=True):
        expected, found = (layer_error(w - r.dequantize().cpu(), x) for r in (a, b))
        print(f"{recipe}: α {a.alpha} and {b.alpha}, error {expected:.6g} and {found:.6g}")
        assert a.alpha == b.alpha or b.objective == pytest.approx(a.objective, rel=1e-4)
        assert found == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("name", ["gptq", "l1"])
def test_threads_write_what_one_after_another_writes(
    tiny_checkpoint: Path, sequences: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Reading ahead and writing behind change no bit of a checkpoint."""
    moments_of(tiny_checkpoint, sequences, tmp_path, "cuda", torch.float32)
    files = {key: str(tmp_path / key) for key in ("channels", "moments")}
    recipe = Recipe.of(PLAIN | {"group_size": 16} | ({"rounding": "gptq"} if name == "gptq" else {"salience": name}))
    linears = all_linears(skeleton(tiny_checkpoint))

    def checkpoint(folder: Path) -> bytes:
        known = Statistics(files, "m", {"attention": ["self_attn"], "mlp": []})
        given = (Source(tiny_checkpoint, linears), Output(folder, tmp_path / "folds"), known, recipe)
        quantize_checkpoint(*given, "cuda", {})
        return (folder / "model.safetensors").read_bytes()

    def put_now(self: object, name: str, offset: int, tensor: Tensor) -> None:
        self._room.take(tensor.nbytes)
        self._write(name, offset, tensor.detach().cpu().contiguous(), None)

    threaded = [checkpoint(tmp_path / f"threaded{i}") for i in range(2)]
    monkeypatch.setattr(tensorfile.TensorFile, "prefetch", lambda *_: None)
    monkeypatch.setattr(tensorfile.Behind, "put", put_now)
    assert [checkpoint(tmp_path / "plain")] * 2 == threaded


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("grid", [Grid(4, 128, False), Grid(4, -1, True), Grid(3, 64, False)])
def test_searches_agree(grid: Grid, clip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same α but where two are as good to 1e-4; in whatever portions the candidates come."""
    for seed in range(6):
        w, moment = case(192, 512, seed)
        salience = moment.diagonal().clone()
        expected = search_scale([Target(w, moment)], salience, grid, 20, clip)
        for at_once in (2**28, 3 * w.nbytes // 2, 1):
            monkeypatch.setattr(grid_kernels(), "AT_ONCE", at_once)
            found = search_scale([Target(w.cuda(), moment.cuda())], salience.cuda(), grid, 20, clip)
            assert found.objective == pytest.approx(expected.objective, rel=1e-4)


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (255, 130), (1000, 576), (5000, 77)])
def test_column_sums_are_those_of_float64(n: int, columns: int) -> None:
    x = (3 + torch.randn(n, columns, generator=torch.Generator().manual_seed(n))).cuda()
    for center in (None, x.mean(0)):
        shifted = x.double() if center is None else x.double() - center.double()
        expected = torch.stack([x.double().abs().sum(0), shifted.square().sum(0), shifted.sum(0)])
        torch.testing.assert_close(column_sums(x, center), expected, rtol=1e-5, atol=1e-5 * n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("act", ["silu", "gelu"])
def test_sums_of_outputs_are_those_of_float64(dtype: torch.dtype, act: str) -> None:
    activation = ACT2FN[act]
    z = torch.randn(1000, 330, generator=torch.Generator().manual_seed(0)).to(dtype).cuda()
    center = z.mean(0, dtype=torch.float32)
    wide, shifted = z.double(), z.double() - center.double()
    expected = [wide.abs().sum(0), shifted.square().sum(0), shifted.sum(0), activation(wide).abs().sum(0)]
    torch.testing.assert_close(output_sums(z, center, activation), torch.stack(expected), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("draws", [3, 6])
def test_sums_of_noisy_inputs_and_outputs_are_their_expectations(dtype: torch.dtype, draws: int) -> None:
    """Within what so many draws leave; without noise, to float32's rounding; one seed, one noise."""
    x = (torch.randn(1000, 200, device="cuda") + 1).to(dtype)
    plain = torch.stack([x.double().abs().mean(0), x.double().square().mean(0)]).float().cpu()
    found = {}
    for name, sigma in (("none", 0.0), ("some", 0.3), ("again", 0.3)):
        noise, own = Noise(5, "cuda"), torch.full((200,), sigma, device="cuda")
        inputs, outputs = (NoisySums(200, own, draws, noise) for _ in range(2))
        inputs.add_input(x)
        outputs.add_output(x, ACT2FN["silu"])
        found[name] = inputs.means(), outputs.means()[0]
    torch.testing.assert_close(found["none"][0], plain, rtol=1e-5, atol=1e-6)
    expected = torch.nn.functional.silu(x.double()).abs().mean(0).float().cpu()
    torch.testing.assert_close(found["none"][1], expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(*both) for both in zip(found["some"], found["again"], strict=True))
    error = found["some"][0][1] - plain[1] - 0.3**2  # of (x + ε)², whose variance is 4x²σ² + 2σ⁴
    deviation = ((4 * plain[1] * 0.09 + 2 * 0.3**4) / (1000 * draws)).sqrt()
    assert 0.6 < (error / deviation).square().mean() < 1.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_in", [64, 576, 2304])
def test_narrow_factors_give_a_moment_within_1e_4_of_its_diagonal(dtype: torch.dtype, n_in: int) -> None:
    """Matrix units cut the float32 sums of exact products."""
    x = (1 + torch.randn(5000, n_in, generator=torch.Generator().manual_seed(0))).to(dtype).cuda()
    total = torch.zeros(n_in, n_in, device="cuda")
    add_outer(total, x)
    add_outer(total, x[:77])
    exact = x.double().T @ x.double() + x[:77].double().T @ x[:77].double()
    units = exact.diagonal().sqrt()
    assert (((mirror(total) - exact) / units).T / units).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [7, 4096, 9001])
def test_loss_is_that_of_float64(dtype: torch.dtype, vocabulary: int) -> None:
    """Of rows that lie apart; infinite where the target has no probability, NaN where a logit is NaN."""
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(50, vocabulary + 5, generator=generator)).to(dtype).cuda()[:, :vocabulary]
    targets = torch.randint(0, vocabulary, (50,), generator=generator).cuda()
    expected = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    torch.testing.assert_close(perplexity.token_nll(logits, targets), expected, rtol=1e-5, atol=1e-5)
    logits[3, targets[3]], logits[4, 0] = -torch.inf, torch.nan
    found = perplexity.token_nll(logits, targets)
    assert found[3] == torch.inf and found[4].isnan() and found[5:].isfinite().all()


@pytest.fixture(scope="module")
def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 256, (length,), generator=generator) for length in (64, 50, 64, 33, 64, 64, 20)]


def moments_of(checkpoint: Path, sequences: list[Tensor], folder: Path, where: str, dtype: torch.dtype) -> dict:
    found = folder / "channels", folder / "moments"
    tokens = Tokens(sequences, fingerprint(sequences), {})
    collect(Material(checkpoint, tokens, {"model_fingerprint": "m"}), *found, Compute(where, dtype, 130))
    with tensorfile.opened(found[0]) as small, tensorfile.opened(found[1]) as large:
        return {name: small.get(name) for name in small.names} | {
            f"{name}.H": from_triangle(large.get(name)) for name in large.names
        }


@pytest.mark.parametrize("resident", [0, 2**30])
def test_statistics_agree(
    tiny_checkpoint: Path, sequences: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: int
) -> None:
    """With hidden states on the GPU, and on their way to and from the host."""
    expected = moments_of(tiny_checkpoint, sequences, tmp_path / "cpu", "cpu", torch.float32)
    monkeypatch.setattr(hidden, "RESIDENT", resident)
    found = moments_of(tiny_checkpoint, sequences, tmp_path / "gpu", "cuda", torch.float32)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_spilling_changes_nothing(
    tiny_checkpoint: Path, sequences: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[int, list[Tensor]] = {}
    for resident in (0, 2**30):
        monkeypatch.setattr(hidden, "RESIDENT", resident)
        for _, _, _, advance in Run(tiny_checkpoint, sequences, "cuda", torch.float32, 130).each():
            kept[resident] = []
            advance(lambda batch: None, lambda out, into=kept[resident]: into.append(out.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*kept.values(), strict=True))


def test_evaluations_agree(tiny_checkpoint: Path, sequences: list[Tensor]) -> None:
    tokens = Tokens(sequences, fingerprint(sequences), {})
    rows, kept = {}, dict[int, Tensor]()
    for where in ("cpu", "cuda"):
        with torch.inference_mode():
            head = Head(perplexity.load_model(tiny_checkpoint, where, torch.float32), where)
        perplexity.measure(head, tokens, 130, keep=kept.__setitem__)
        kept = {i: -state for i, state in kept.items()}  # another distribution, the same on both
        rows[where], _ = perplexity.measure(head, tokens, 130, Reference(kept.__getitem__, head.logits))
    for a, b in zip(rows["cpu"], rows["cuda"], strict=True):
        assert (b["nll"], b["kl"]) == pytest.approx((a["nll"], a["kl"]), rel=1e-3) and a["kl"] > 0


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("n_in", "group_size"), [(640, 128), (576, 64), (96, 32)])
def test_tinygemm_is_of_the_checkpoints_weights(n_in: int, group_size: int, symmetric: bool) -> None:
    """Each of the tilings that benchmarks/int4_speed.py asks for."""
    linear = codes_of(Grid(4, group_size, symmetric), 64, n_in)
    x = torch.randn(3, n_in, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = int4_speed.Int4Pack(linear, 32, None, "cuda")(x.cuda()).float().cpu()
    expected = x.float() @ linear.dequantize().T
    assert (found - expected).norm() < 0.01 * expected.norm()
