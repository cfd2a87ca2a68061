"""AutoRound's AutoScheme, tuned by AutoRound: autoscheme.py CONVERTED TEXT --environment PATH --beside NPZ.

CONVERTED and TEXT as mixes.py takes them; PATH is a folder that build_library made for AutoRound. AutoScheme chooses
among 2, 3, 4 and 8 bits in groups of 64 with zero points, within `--bits` a weight as it counts them (codes, and of a
group a step of 16 bits and a zero of as many as a code has), and AutoRound tunes the model with these, on the same
calibration text; its weights are measured on the same windows. What compressed-tensors would store is said too. NPZ:
the sums that mixes.py left, each set beside it.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from budget import Judge, interval
from frontier import CALIBRATION, SEED, texts
from safetensors.torch import load_file

from quant.checkpoints import packed
from quant.evaluation import perplexity
from quant.files import tensorfile
from quant.recipe.grids import Grid
from quant.runtime.compute import device

OPTIONS, GROUP_SIZE = (2, 3, 4, 8), 64
OVERLAP = 16  # tokens that a text has more than it is cut to, since its ends may be read as others
WORKER = Path(__file__).with_name("autoscheme_worker.py")


def calibration(checkpoint: Path, sequences: list[torch.Tensor], following: torch.Tensor) -> list[str]:
    """Texts that begin with these sequences; following: what comes after the last one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    after = [*(each[:OVERLAP] for each in sequences[1:]), following[:OVERLAP]]
    return [str(tokenizer.decode([*a.tolist(), *b.tolist()])) for a, b in zip(sequences, after, strict=True)]


def started(job: dict[str, Any], words: list[str], folder: Path, environment: Path) -> subprocess.Popen[bytes]:
    text = folder / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": each}) for each in words))
    own = {"text": str(text), "out": str(folder), "options": OPTIONS, "group_size": GROUP_SIZE, "n": len(words)}
    (folder / "job.json").write_text(json.dumps(job | own))
    with (folder / "log.txt").open("w") as log:
        python = environment / "bin/python"
        return subprocess.Popen([python, WORKER, folder / "job.json"], stdout=log, stderr=subprocess.STDOUT)


def waited(path: Path, process: subprocess.Popen[bytes]) -> Any:
    """What it wrote there."""
    while not path.is_file():
        if process.poll() is not None and not path.is_file():
            raise SystemExit((path.parent / "log.txt").read_text()[-3000:])
        time.sleep(0.2)
    return json.loads(path.read_text())


def sizes(layout: tensorfile.Layout, widths: Mapping[str, Mapping[str, Any]]) -> tuple[float, float]:
    """Bits a weight as compressed-tensors stores them, and as the library counts them."""
    stored = nominal = weights = 0
    for name, each in widths.items():
        dtype, (n_out, n_in) = layout[f"{name}.weight"]
        bits, size = each["bits"], each["group_size"]
        stored += packed.bits_of(packed.layout_of(name, (n_out, n_in), dtype, Grid(bits, size, each["sym"])))
        nominal += n_out * (n_in * bits + -(-n_in // size) * (16 + bits))
        weights += n_out * n_in
    return stored / weights, nominal / weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("converted", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--environment", type=Path, required=True)
    parser.add_argument("--bits", type=float, default=3.92, help="a weight, as the library counts them")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--calibration", type=int, default=CALIBRATION[0], help="sequences of 512 tokens")
    parser.add_argument("--limit", type=int, default=None, help="windows that are measured on")
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--out", type=Path, default=Path("autoscheme.npz"))
    options = parser.parse_args()
    begun, where, checkpoint = time.perf_counter(), device("auto"), options.converted / "checkpoint"
    torch.backends.cuda.matmul.allow_tf32 = False
    sequences, judged = texts(checkpoint, options.text, options.calibration)
    windows = judged["wikitext"][: options.limit]
    words = calibration(checkpoint, sequences, windows[0])
    names = list(json.loads((options.converted / "convert.json").read_text())["linears"])
    job = {"model": str(checkpoint), "device": where, "linears": names, "average_bits": options.bits, "batch": 8}
    job |= {"iterations": options.iterations, "width": CALIBRATION[1], "seed": SEED}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = started(job, words, folder, options.environment)
        try:
            found = waited(folder / "widths.json", process)
            options.out.with_suffix(".json").write_text(json.dumps(found))
            with tensorfile.opened(checkpoint / "model.safetensors") as file:
                stored, nominal = sizes(file.layout(), found["widths"])
            chosen = [each["bits"] for each in found["widths"].values()]
            counts = ", ".join(f"{chosen.count(bits)} of {bits} bits" for bits in OPTIONS)
            print(f"chosen in {found['seconds']:.1f} s: {counts}; all with zero points: ", end="")
            print(f"{all(not each['sym'] for each in found['widths'].values())}; {stored:.4f} bits stored, ", end="")
            print(f"{nominal:.4f} as the library counts them", flush=True)
            print(f"tuned: {waited(folder / 'result.json', process)}", flush=True)
        finally:
            process.kill()
        weights = load_file(folder / "weights.safetensors")
    model = perplexity.load_model(checkpoint, where, torch.float32)
    judge = Judge(model, windows, where)
    for linear in names:
        model.get_submodule(linear).weight.data = weights[linear].to(where)
    theirs = judge.sums(model)
    np.savez(options.out, weights=judge.weights, autoscheme=theirs)
    kl, delta = (interval(theirs[:, i], np.zeros(len(theirs)), judge.weights) for i in (0, 1))
    print(f"[{time.perf_counter() - begun:.1f}] AutoScheme: KL {kl}, delta_nll {delta}", flush=True)
    if options.beside is None:
        return
    with np.load(options.beside) as ours:
        for label in (each for each in ours.files if each != "weights" and len(ours[each]) == len(theirs)):
            kl, delta = (interval(ours[label][:, i], theirs[:, i], judge.weights) for i in (0, 1))
            print(f"{label} minus AutoScheme: KL {kl}, delta_nll {delta}", flush=True)


if __name__ == "__main__":
    main()
