"""A study's jobs on one GPU of this host and on several: several_gpus.py TEXT [--gpus 1 2 4] [--samples 64] …

Makes a random MiniCPM-2B (random_minicpm.py) of so many blocks, runs what its methods share and two of them, so that
kernels are compiled, then for each number of GPUs, in a copy of that, eight methods' quantising and evaluating by
Snakemake with `--resources gpu=N`. Prints the seconds of each whole command and of its jobs' processes, the throughput
by the first number's, and whether every figure and every tensor is the same as there.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow_scripts"))

from quant.files.artifacts import read_json, write_plain_json

METHODS = ["gw_awq", "gw_praq", "full_awq", "gw_awq_flip", "awq_clip", "gptq", "awq_clip_gptq", "awq_clip_gptq_shared"]
FIGURES = ("sequences", "tensors")  # of an evaluation: NLL and KL of each sequence, and a mark of all tensors
MODEL, DATASET = "random", "windows"


def study_of(folder: Path, samples: int) -> dict[str, Any]:
    return {
        "study": {"models": [MODEL], "datasets": [DATASET], "methods": METHODS, "tasks": []},
        "models": {MODEL: {"source": {"directory": str(folder / "model")}}},
        "texts": {"text": {"files": [str(folder / "model/text.txt")]}},
        "calibration": {"text": "text", "protocol": "windows", "seq_len": 512, "n_calib": 128, "shuffle": False},
        "datasets": {DATASET: {"text": "text", "protocol": "windows", "seq_len": 2048, "n_samples": samples}},
        "defaults": {"group_size": 128},
        "original": {"implausible": "continue"},  # which random weights are
        "compute": {"threads": 4},
    }


def evaluations(names: list[str]) -> list[str]:
    return [f"results/{MODEL}/{name}/evaluation/{DATASET}.json" for name in names]


def run(folder: Path, where: Path, gpus: int, targets: list[str]) -> float:
    """Seconds of the whole command; where: the folder of its results."""
    command = ["snakemake", "--cores", "all", "--resources", f"gpu={gpus}", "--directory", str(where), "--snakefile"]
    command += [str(ROOT / "Snakefile"), "--configfile", str(folder / "study.json"), "--quiet", "all", "--", *targets]
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return time.perf_counter() - begun


def seconds_of_jobs(where: Path) -> dict[str, list[float]]:
    """Of each rule's processes, by Snakemake's own clock."""
    files = {"quantize": "{}.tsv", "evaluate": f"{{}}/{DATASET}.tsv"}
    tables = where / "results/benchmarks"
    return {
        rule: [float(pd.read_csv(tables / rule / MODEL / file.format(name), sep="\t")["s"].iloc[0]) for name in METHODS]
        for rule, file in files.items()
    }


def marks(where: Path) -> list[list[Any]]:
    """What each method's figures and tensors are."""
    said = [read_json(where / path) for path in evaluations(METHODS)]
    return [[each[key] for key in FIGURES] for each in said]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=2304)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--samples", type=int, default=64, help="windows of 2,048 tokens to evaluate on")
    parser.add_argument("--folder", type=Path, help="where all of it goes for the time; default: a temporary directory")
    options = parser.parse_args()
    os.environ.pop("SNAKEMAKE_PROFILE", None)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        sizes = [f"--{key}={getattr(options, key)}" for key in ("layers", "hidden", "vocabulary")]
        made = [ROOT / "benchmarks/random_minicpm.py", folder / "model", options.text.resolve(), *sizes]
        subprocess.run([sys.executable, *map(str, made)], check=True)
        write_plain_json(folder / "study.json", study_of(folder, options.samples))
        shared = [f"results/{MODEL}/original/evaluation/{DATASET}.json", *evaluations(["awq_clip", "gptq"])]
        spent = run(folder, folder / "shared", max(options.gpus), shared)
        print(f"what is shared, and two methods: {spent:.1f} s", flush=True)
        for method in ("awq_clip", "gptq"):
            shutil.rmtree(folder / f"shared/results/{MODEL}/{method}")
        first: tuple[float, list[list[Any]]] | None = None
        for gpus in options.gpus:
            where = folder / f"on{gpus}"
            shutil.copytree(folder / "shared", where, copy_function=os.link)
            shutil.rmtree(where / "results/benchmarks")
            spent = run(folder, where, gpus, evaluations(METHODS))
            found, jobs = marks(where), seconds_of_jobs(where)
            first = first or (spent, found)
            means = ", ".join(f"{rule} {sum(own) / len(own):.1f} s of {len(own)}" for rule, own in jobs.items())
            same = sum(own == known for own, known in zip(found, first[1], strict=True))
            print(
                f"{gpus} GPUs: {spent:.1f} s, processes {sum(map(sum, jobs.values())):.1f} s ({means}); throughput "
                f"{first[0] / spent:.2f} times; the same to the bit: {same} of {len(METHODS)} methods",
                flush=True,
            )
            shutil.rmtree(where)


if __name__ == "__main__":
    main()
