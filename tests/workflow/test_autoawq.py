"""The AutoAWQ library for real, on tiny models, in the environment that the workflow makes for it."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from quant.checkpoints import gemm
from quant.checkpoints.export import export
from quant.data import tokens
from quant.evaluation.perplexity import load_model
from quant.methods import library
from quant.methods.source import Output, Source
from quant.models.conversion import convert
from quant.recipe import grids
from tests import tiny
from tests.unit.recipe.cases import run
from tests.workflow.environments import environment_of, link
from tests.workflow.strike import KILL, strike

pytestmark = pytest.mark.slow
# its clipping wants output channels in multiples of 64, the values' of grouped-query attention too
SHAPE = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "initializer_range": 0.15}


@pytest.fixture(scope="module")
def environment() -> Path:
    return environment_of("autoawq")


def save_granite(folder: Path) -> None:
    """A random 2-layer Granite with multipliers that show when forgotten, bfloat16, as MiniCPM is converted to."""
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=256,
        num_hidden_layers=2,
        num_key_value_heads=4,
        max_position_embeddings=512,
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
        logits_scaling=2.0,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        **SHAPE,
    )
    GraniteForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tiny.save_tokenizer(folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, environment: Path) -> Path:
    """A Granite through the whole chain to summary.csv."""
    folder = tiny.clone(tmp_path_factory.mktemp("autoawq") / "clone")
    link(folder, environment)
    shutil.rmtree(folder / "inputs/model")
    save_granite(folder / "inputs/model")
    overlay = tiny.OVERLAY | {
        "study": {"models": ["tiny"], "datasets": ["heldout"], "methods": ["autoawq"], "tasks": []},
        "defaults": {"group_size": 32},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(overlay))
    done = tiny.snakemake(folder, "results/summary.csv")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_whole_chain_measures_it_like_any_method(study: Path) -> None:
    row = pd.read_csv(study / "results/summary.csv").set_index("method").loc["autoawq"]
    assert row["bits_per_weight"] == 4 + (4 + 16) / 32
    assert row["storage"] == "simulated" and row["quantize_s"] > 0
    assert 0 < row["kl"] < 0.2
    record = tiny.read(study / "results/tiny/autoawq/quantize.json")
    assert record["summary"]["packed_mb"] < row["size_mb"]
    made = record["provenance"]
    assert made["versions"]["autoawq"] == "0.2.9" and made["versions"]["autoawq's transformers"] == "4.51.3"
    assert made["calibration_tokens"] == 12 * 32


def test_errors_are_true_ones_since_every_fold_is_known(study: Path) -> None:
    """A fold that is forgotten, or taken the wrong way, makes a linear's relative error about 1."""
    linears = pd.read_csv(study / "results/linears.csv")
    assert len(linears) == 14 and linears["milliseconds"].gt(0).all() and linears["alpha"].isna().all()
    assert linears["relative_error"].between(0.001, 0.03).all()
    folds = load_file(study / "results/tiny/autoawq/folds.safetensors")
    assert len([name for name in folds if name.endswith(".input")]) == 14
    assert {name.split(".")[4] for name in folds if name.endswith(".output")} == {"v_proj", "up_proj"}


def assert_near(original: Path, quantised: Path, group_size: int) -> None:
    """The logits of a checkpoint that plain transformers loads stay near the original's: about as near as after
    rounding to the nearest point of the same kind of grid. On random weights no search gains much."""
    from transformers import AutoModelForCausalLM

    ids = torch.randint(3, 200, (4, 24), generator=torch.Generator().manual_seed(0))
    before, after, rounded = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (original, quantised, original)
    )
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            if "_proj" in name:
                parameter.copy_(grids.nearest(parameter, grids.Grid(4, group_size, False)))
        logits = before(ids).logits
        error, nearest = ((model(ids).logits - logits).square().mean() / logits.var() for model in (after, rounded))
    assert 0 < error < 2 * nearest < 0.5


def test_logits_are_near_the_originals(study: Path) -> None:
    assert_near(*(study / f"results/tiny/{name}/checkpoint" for name in ("original", "autoawq")), group_size=32)


def test_killed_in_the_middle_it_ends_in_the_same_bytes(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, target = study / "results/tiny/autoawq", "results/tiny/autoawq/quantize.json"
    names = ("checkpoint/model.safetensors", "checkpoint/config.json", "folds.safetensors")
    before = {name: (folder / name).read_bytes() for name in names}
    with monkeypatch.context() as patch:
        struck = strike(tmp_path, patch, KILL)
        assert tiny.snakemake(study, target, "--forcerun", "quantize_library").returncode == 1
    assert [path.name for path in struck.iterdir()] == ["quantize_library"]
    assert not (study / target).exists()
    done = tiny.snakemake(study, target, "results/summary.csv")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [name for name in names if (folder / name).read_bytes() != before[name]] == []


def test_a_llama_with_grouped_queries(environment: Path, tmp_path: Path) -> None:
    """By the library function: o_proj, which v_proj cannot scale for, has no fold; the others' are exact."""
    source, target = tiny.save_model(tmp_path / "source", num_key_value_heads=2, **SHAPE), tmp_path / "target"
    target.mkdir()
    names = load_file(source / "model.safetensors")
    linears = {name.removesuffix(".weight"): int(name.split(".")[2]) for name in names if "_proj" in name}
    sequences = list(torch.randint(3, 200, (8, 24), generator=torch.Generator().manual_seed(0)))
    tokens.save(tmp_path / "tokens.safetensors", sequences, {"model_fingerprint": "its own"})
    recipe = {"algorithm": "autoawq", "bits": 4, "clip": False, "group_size": 64, "n_calib": 8, "seed": 0}
    record = library.quantize_library(
        Source(source, linears),
        Output(target, tmp_path / "folds.safetensors"),
        tmp_path / "tokens.safetensors",
        environment,
        {"recipe": recipe, "seed": 0, "versions": {}, "model_fingerprint": "its own"},
        "cpu",
        48,
    )
    assert record["summary"]["bits_per_weight"] == 4 + (4 + 16) / 64
    assert not list(tmp_path.glob(".autoawq.*"))
    # without clipping, each code is the point nearest to the weight under its folds, but for float16
    assert all(row["flipped"] < 0.01 and row["distance_max"] < 0.6 for row in record["linears"])
    original, quantised = (load_file(folder / "model.safetensors") for folder in (source, target))
    folds = load_file(tmp_path / "folds.safetensors")
    assert {name.split(".")[4] for name in linears if f"{name}.input" not in folds} == {"o_proj"}
    for name in linears:
        w = original[f"{name}.weight"]
        unfolded = quantised[f"{name}.weight"] / folds.get(f"{name}.input", torch.ones(1))
        unfolded = unfolded / folds.get(f"{name}.output", torch.ones(1))[:, None]
        assert (unfolded - w).norm() < 0.15 * w.norm()
    for layer in range(2):
        for norm, linear in (("input", "self_attn.k_proj"), ("post_attention", "mlp.gate_proj")):
            name = f"model.layers.{layer}.{norm}_layernorm.weight"
            scale = folds[f"model.layers.{layer}.{linear}.input"]
            torch.testing.assert_close(quantised[name] * scale, original[name], rtol=1e-3, atol=0)
    assert torch.equal(quantised["model.embed_tokens.weight"], original["model.embed_tokens.weight"])
    assert_near(source, target, group_size=64)


def test_nothing_to_do_the_second_time_and_a_changed_key_reruns_it_alone(study: Path) -> None:
    overlay = yaml.safe_load((study / "tiny.yaml").read_text())
    for entry, expected in (({}, {}), ({"clip": False}, {"quantize_library": 1, "evaluate": 1, "measure_error": 1})):
        overlay["methods"] = {"autoawq": {"algorithm": "autoawq"} | entry}
        (study / "changed.yaml").write_text(yaml.safe_dump(overlay))
        done = tiny.snakemake(study, "--dry-run", "results/summary.csv", config="changed.yaml")
        assert done.returncode == 0, done.stdout + done.stderr
        assert tiny.pending_in(done.stdout + done.stderr) == expected | ({"summarize": 1} if expected else {})


# ---- against the library itself


LIBRARY = """
import sys, torch
from pathlib import Path
from awq.modules.linear.gemm import WQLinear_GEMM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, __version__
assert __version__ == "4.51.3"
folder = Path(sys.argv[1])
given = load_file(folder / "given.safetensors")
linear = torch.nn.Linear(64, 96, bias=False)
linear.weight.data = given["weight"]
made = WQLinear_GEMM.from_linear(linear, 4, 16, scales=given["scales"], zeros=given["zeros"])
save_file({"qweight": made.qweight, "qzeros": made.qzeros, "scales": made.scales}, folder / "packed.safetensors")
for model in sorted(folder.glob("*/")):
    logits = AutoModelForCausalLM.from_pretrained(model, torch_dtype=torch.float32)(given["ids"]).logits.detach()
    save_file({"logits": logits}, model / "logits.safetensors")
"""
ROPE = {
    "theta": {"rope_type": "default", "rope_theta": 500.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "linear": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0},
}  # fmt: skip


class Compared(NamedTuple):
    """What we gave the library to pack and to run, and the folder with what it made of it."""

    codes: torch.Tensor
    zeros: torch.Tensor
    weight: torch.Tensor
    ids: torch.Tensor
    sources: dict[str, Path]
    folder: Path


def older_words(folder: Path) -> None:
    """As convert writes config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(convert.with_older_keys(json.loads(path.read_text()))))


@pytest.fixture(scope="module")
def compared(environment: Path, study: Path, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """A linear on a 4-bit grid, and models whose positions and multipliers are not the usual ones."""
    folder = tmp_path_factory.mktemp("library")
    generator = torch.Generator().manual_seed(0)
    codes, zeros = (torch.randint(0, 16, shape, generator=generator) for shape in ((64, 96), (4, 96)))
    scales = (torch.rand(4, 96, generator=generator) + 0.5).half().float()
    weight = ((codes - zeros.repeat_interleave(16, 0)) * scales.repeat_interleave(16, 0)).T.contiguous()
    ids = torch.randint(3, 200, (2, 48), generator=generator)
    save_file({"weight": weight, "zeros": zeros.float(), "scales": scales, "ids": ids}, folder / "given.safetensors")
    sources = {"granite": study / "results/tiny/original/checkpoint"}
    for name, rope in ROPE.items():
        made = tmp_path_factory.mktemp("sources") / name
        sources[name] = tiny.save_model(made, rope_parameters=rope, **SHAPE)
    for name, source in sources.items():
        shutil.copytree(source, folder / name)
        older_words(folder / name)
    python = environment / "bin/python"
    done = subprocess.run([str(python), "-c", LIBRARY, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Compared(codes, zeros, weight, ids, sources, folder)


def test_unpacking_inverts_the_librarys_packing(compared: Compared) -> None:
    made = gemm.Packed(**load_file(compared.folder / "packed.safetensors"))
    assert torch.equal(gemm.unpack_int4(made.qweight), compared.codes.to(torch.uint8))
    assert torch.equal(gemm.unpack_int4(made.qzeros), compared.zeros.to(torch.uint8))
    assert torch.equal(made.unpack().dequantize(), compared.weight)


@pytest.mark.parametrize("name", ["granite", *ROPE])
def test_the_older_transformers_computes_the_same_logits(compared: Compared, name: str) -> None:
    """From a checkpoint whose config.json is as convert writes it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(compared.sources[name], dtype=torch.float32)
    ours = model(compared.ids).logits.detach()
    theirs = load_file(compared.folder / name / "logits.safetensors")["logits"]
    assert ours.std() > 0.1
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


# its entry on a CPU asks for a package of Intel's, and its kernels for a GPU; the plain product is in it all the same
LOADER = """
import sys, torch
from awq import AutoAWQForCausalLM
from awq.models import base
from awq.modules.linear import gemm
from safetensors.torch import load_file, save_file
base.get_best_device, gemm.TRITON_AVAILABLE, gemm.awq_ext = lambda: "elsewhere", False, None
options = {"fuse_layers": False, "device_map": {"": "cpu"}, "trust_remote_code": False}
model = AutoAWQForCausalLM.from_quantized(sys.argv[1], **options)
linears = {name for name, module in model.named_modules() if isinstance(module, gemm.WQLinear_GEMM)}
assert len(linears) == 14, linears
ids = load_file(sys.argv[2])["ids"]
save_file({"logits": model(ids).logits.detach().float()}, sys.argv[3])
"""


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_library_loads_an_export(environment: Path, tmp_path: Path, symmetric: bool) -> None:
    """Its logits, of float16 products, are the packed checkpoint's."""
    source = tiny.save_model(tmp_path / "source", rope_parameters=ROPE["llama3"], dtype="float16", **SHAPE)
    half = {name: value.half() for name, value in load_file(source / "model.safetensors").items()}
    save_file(half, source / "model.safetensors", {"format": "pt"})
    older_words(source)
    run(source, tmp_path / "made/checkpoint", {}, group_size=32, symmetric=symmetric)
    export(tmp_path / "made/checkpoint", tmp_path / "awq", "awq", "tiny")
    ids = torch.randint(3, 200, (2, 48), generator=torch.Generator().manual_seed(0))
    save_file({"ids": ids}, tmp_path / "given.safetensors")
    paths = [str(tmp_path / name) for name in ("awq", "given.safetensors", "logits.safetensors")]
    python = environment / "bin/python"
    done = subprocess.run([str(python), "-c", LOADER, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "logits.safetensors")["logits"]
    with torch.inference_mode():
        ours = load_model(tmp_path / "made/checkpoint", "cpu", torch.float32)(ids).logits
    assert (found - ours).norm() < 0.01 * ours.norm()


# ---- mistakes


def test_an_environment_that_pip_cannot_make(tmp_path: Path) -> None:
    """One line, and nothing of it left."""
    folder = tiny.clone(tmp_path / "clone")
    (folder / "envs/autoawq.txt").write_text("no-such-package-here==1.0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        done = tiny.snakemake(folder, "results/environments/autoawq/complete")
    seen = done.stdout + done.stderr
    lines = {line for line in seen.splitlines() if line.startswith("ERROR AutoAWQ's environment: pip install failed")}
    assert done.returncode == 1 and len(lines) == 1 and "no-such-package-here" in lines.pop(), seen
    assert "Traceback" not in seen
    assert not [path for path in (folder / "results/environments").rglob("*") if path.is_file()]
