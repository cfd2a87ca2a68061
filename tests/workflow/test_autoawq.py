"""The AutoAWQ library for real, on tiny models, in the environment that the workflow makes for it.

The environment is built once by its own rule and kept beside other temporary files, under a name that changes with its
requirements; clones link to it.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file, save_file

from quant import autoawq
from quant.artifacts import digest
from tests import tiny

REQUIREMENTS = tiny.ROOT / "envs/autoawq.txt"
# its clipping wants output channels in multiples of 64, the values' of grouped-query attention too
SHAPE = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "initializer_range": 0.15}
MODELS = {
    "grouped": {"num_key_value_heads": 2},  # no scale for o_proj
    "plain": {"num_key_value_heads": 4},  # v_proj takes o_proj's
}


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/environments with AutoAWQ's in it, made by rule build_autoawq where an earlier run has not."""
    kept = Path(tempfile.gettempdir()) / f"quant-autoawq-{digest(REQUIREMENTS.read_bytes())}"
    with FileLock(f"{kept}.lock"):
        if not (kept / "results/environments/autoawq/complete").is_file():
            shutil.rmtree(kept, ignore_errors=True)
            tiny.clone(kept)
            done = tiny.snakemake(kept, "results/environments/autoawq/complete")
            seen = done.stdout + done.stderr
            if done.returncode:
                shutil.rmtree(kept)
                if "pip install failed" in seen:
                    pytest.skip("pip cannot install AutoAWQ's environment here")
                raise AssertionError(seen)
    return kept / "results/environments"


def link(clone: Path, environments: Path) -> None:
    """The shared environment in a clone; newer than the clone's copy of its requirements."""
    (clone / "results").mkdir(exist_ok=True)
    (clone / "results/environments").symlink_to(environments)
    for name in ("complete", "packages.txt"):
        os.utime(environments / "autoawq" / name)


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
def study(tmp_path_factory: pytest.TempPathFactory, environments: Path) -> Path:
    """Two Llamas and a Granite through the whole chain to summary.csv, AutoAWQ beside nearest rounding."""
    folder = tiny.clone(tmp_path_factory.mktemp("autoawq") / "clone")
    link(folder, environments)
    for name, changes in MODELS.items():
        tiny.save_model(folder / f"inputs/{name}", **SHAPE | changes)
    save_granite(folder / "inputs/granite")
    names = [*MODELS, "granite"]
    overlay = tiny.OVERLAY | {
        "study": {"models": names, "datasets": ["heldout"], "methods": ["rtn_g", "autoawq"]},
        "models": {name: {"source": {"directory": f"inputs/{name}"}} for name in names},
        "defaults": {"group_size": 32},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(overlay))
    done = tiny.snakemake(folder, "results/summary.csv")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("model", [*MODELS, "granite"])
def test_the_whole_chain_measures_it_like_any_method(study: Path, model: str) -> None:
    summary = pd.read_csv(study / "results/summary.csv").set_index(["model", "method"])
    row, nearest = summary.loc[model, "autoawq"], summary.loc[model, "rtn_g"]
    assert row["bits_per_weight"] == 4 + (4 + 16) / 32 == nearest["bits_per_weight"]
    assert row["storage"] == "simulated" and row["quantize_s"] > 0
    assert row["kl"] < 1.5 * nearest["kl"]
    record = tiny.read(study / f"results/{model}/autoawq/quantize.json")
    assert record["summary"]["packed_mb"] < row["size_mb"]
    assert record["provenance"]["versions"]["autoawq's transformers"] == "4.51.3"
    tokens = tiny.read(study / f"results/{model}/rtn_g/quantize.json")["provenance"]["model_fingerprint"]
    assert record["provenance"]["model_fingerprint"] == tokens
    assert record["provenance"]["calibration_tokens"] == 12 * 32


@pytest.mark.parametrize("model", [*MODELS, "granite"])
def test_errors_are_true_ones_since_every_fold_is_known(study: Path, model: str) -> None:
    """A fold that is forgotten, or taken the wrong way, makes a linear's relative error about 1."""
    linears = pd.read_csv(study / "results/linears.csv").set_index(["model", "method"])
    found, nearest = linears.loc[(model, "autoawq")], linears.loc[(model, "rtn_g")]
    assert len(found) == 14 and found["milliseconds"].gt(0).all() and found["alpha"].isna().all()
    assert found["relative_error"].max() < 0.05
    assert found["relative_error"].mean() < 1.2 * nearest["relative_error"].mean()
    folds = load_file(study / f"results/{model}/autoawq/folds.safetensors")
    scaled = {name.split(".")[4] for name in folds if name.endswith(".input")}
    expected = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}
    assert scaled == expected | ({"o_proj"} if model != "grouped" else set())


def test_norms_are_the_originals_over_the_scales(study: Path) -> None:
    original = load_file(study / "results/plain/original/checkpoint/model.safetensors")
    quantised = load_file(study / "results/plain/autoawq/checkpoint/model.safetensors")
    folds = load_file(study / "results/plain/autoawq/folds.safetensors")
    for layer in range(2):
        for norm, linear in (("input", "self_attn.k_proj"), ("post_attention", "mlp.gate_proj")):
            name = f"model.layers.{layer}.{norm}_layernorm.weight"
            scale = folds[f"model.layers.{layer}.{linear}.input"]
            torch.testing.assert_close(quantised[name] * scale, original[name], rtol=1e-3, atol=0)
    assert torch.equal(quantised["model.embed_tokens.weight"], original["model.embed_tokens.weight"])


def test_logits_are_near_the_originals(study: Path) -> None:
    """With the checkpoint that plain transformers loads."""
    from transformers import AutoModelForCausalLM

    ids = torch.randint(3, 200, (4, 24), generator=torch.Generator().manual_seed(0))
    for model in (*MODELS, "granite"):
        logits = [
            AutoModelForCausalLM.from_pretrained(study / f"results/{model}/{method}/checkpoint", dtype=torch.float32)(
                ids
            ).logits.detach()
            for method in ("original", "autoawq", "rtn_g")
        ]
        error, nearest = ((found - logits[0]).square().mean() / logits[0].var() for found in logits[1:])
        assert error < 0.1 and error < 1.5 * nearest


def test_nothing_to_do_the_second_time_and_a_changed_key_reruns_it_alone(study: Path) -> None:
    overlay = yaml.safe_load((study / "tiny.yaml").read_text())
    for entry, expected in (({}, {}), ({"clip": False}, {"quantize_autoawq": 3, "evaluate": 3, "measure_error": 3})):
        overlay["methods"] = {"autoawq": {"algorithm": "autoawq"} | entry}
        (study / "changed.yaml").write_text(yaml.safe_dump(overlay))
        done = tiny.snakemake(study, "--dry-run", "results/summary.csv", config="changed.yaml")
        assert done.returncode == 0, done.stdout + done.stderr
        assert tiny.pending_in(done.stdout + done.stderr) == expected | ({"summarize": 1} if expected else {})


# ---- against the library itself


def isolated(environments: Path, code: str, folder: Path) -> None:
    """Runs a few lines in AutoAWQ's environment."""
    python = environments / "autoawq/bin/python"
    command = [str(python), "-W", "ignore", "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


PACK = """
import sys, torch
from pathlib import Path
from awq.modules.linear.gemm import WQLinear_GEMM
from safetensors.torch import load_file, save_file
folder = Path(sys.argv[1])
given = load_file(folder / "given.safetensors")
linear = torch.nn.Linear(64, 40, bias=False)
linear.weight.data = given["weight"]
made = WQLinear_GEMM.from_linear(linear, 4, 16, scales=given["scales"], zeros=given["zeros"])
save_file({"qweight": made.qweight, "qzeros": made.qzeros, "scales": made.scales}, folder / "packed.safetensors")
"""


def test_unpacking_inverts_the_librarys_packing(environments: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    codes, zeros = (torch.randint(0, 16, shape, generator=generator) for shape in ((64, 40), (4, 40)))
    scales = (torch.rand(4, 40, generator=generator) + 0.5).half()
    weight = ((codes - zeros.repeat_interleave(16, 0)) * scales.float().repeat_interleave(16, 0)).T.contiguous()
    given = {"weight": weight, "zeros": zeros.float(), "scales": scales.float()}
    save_file(given, tmp_path / "given.safetensors")
    isolated(environments, PACK, tmp_path)
    made = autoawq.Packed(**load_file(tmp_path / "packed.safetensors"))
    assert torch.equal(autoawq.unpack_int4(made.qweight), codes.to(torch.uint8))
    assert torch.equal(autoawq.unpack_int4(made.qzeros), zeros.to(torch.uint8))
    assert torch.equal(made.unpack().dequantize(), weight)


LOGITS = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, __version__
assert __version__ == "4.51.3"
ids = load_file(Path(sys.argv[1], "ids.safetensors"))["ids"]
for model in sorted(Path(sys.argv[1]).glob("*/")):
    logits = AutoModelForCausalLM.from_pretrained(model, torch_dtype=torch.float32)(ids).logits.detach()
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


def test_the_older_transformers_computes_the_same_logits(environments: Path, study: Path, tmp_path: Path) -> None:
    """From the translated copy of a converted checkpoint, positions and multipliers that are not the usual ones."""
    from transformers import AutoModelForCausalLM

    sources = {name: study / f"results/{name}/original/checkpoint" for name in ("plain", "granite")}
    for name, rope in ROPE.items():
        sources[name] = tiny.save_model(tmp_path / "sources" / name, rope_parameters=rope, **SHAPE)
    (tmp_path / "older").mkdir()
    for name, source in sources.items():
        autoawq.older_copy(source, tmp_path / "older" / name)
    ids = torch.randint(3, 200, (2, 48), generator=torch.Generator().manual_seed(0))
    save_file({"ids": ids}, tmp_path / "older/ids.safetensors")
    isolated(environments, LOGITS, tmp_path / "older")
    for name, source in sources.items():
        ours = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)(ids).logits.detach()
        theirs = load_file(tmp_path / "older" / name / "logits.safetensors")["logits"]
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


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


def test_a_model_that_it_cannot_take(environments: Path, tmp_path: Path) -> None:
    """Found before the library starts; the environment stays."""
    folder = tiny.clone(tmp_path / "clone")  # hidden size 48
    link(folder, environments)
    done = tiny.snakemake(folder, "results/tiny/autoawq/quantize.json")
    seen = done.stdout + done.stderr
    assert done.returncode == 1 and "are no multiple of" in seen and "Traceback" not in seen, seen
    assert not [path for path in (folder / "results/tiny/autoawq").rglob("*") if path.is_file()]
