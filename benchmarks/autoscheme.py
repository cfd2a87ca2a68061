"""A mix of widths beside AutoRound's AutoScheme at equal bits: autoscheme.py CONVERTED TEXT --environment PATH.

CONVERTED and TEXT as mixes.py takes them; PATH is a folder that build_library made for AutoRound. AutoScheme chooses
among 2, 3, 4 and 8 bits in groups of 64 with zero points, within `--bits` a weight as it counts them, and AutoRound
tunes the model with these, on the same calibration text. A mix of ours takes no more than it, both as the library
counts bits and as compressed-tensors stores them. Of the choice by itself: both put together from the same candidates.
"""

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from frontier import SEED
from mixes import GRIDS, MIX, Trial, as_codes, parsed
from safetensors.torch import load_file

from quant.methods.allocation import allocate
from quant.models.compute import device

OPTIONS, GROUP_SIZE = (2, 3, 4, 8), 64
OVERLAP = 16  # tokens that a text has more than it is cut to, since its ends may be read as others
WORKER = Path(__file__).with_name("autoscheme_worker.py")
THEIRS = "AutoScheme"


def started(converted: Path, trial_texts: list[str], names: list[str], folder: Path, options: Any) -> subprocess.Popen:
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": each}) for each in trial_texts))
    job = {
        "model": str(converted / "checkpoint"),
        "text": str(folder / "text.jsonl"),
        "out": str(folder),
        "device": device("auto"),
        "linears": names,
        "average_bits": options.bits,
        "options": OPTIONS,
        "group_size": GROUP_SIZE,
        "iterations": options.iterations,
        "batch": 8,
        "n": len(trial_texts),
        "width": options.width,
        "seed": SEED,
    }
    (folder / "job.json").write_text(json.dumps(job))
    with (folder / "log.txt").open("w") as log:
        python = options.environment / "bin/python"
        return subprocess.Popen([python, WORKER, folder / "job.json"], stdout=log, stderr=subprocess.STDOUT)


def waited(path: Path, process: subprocess.Popen) -> Path:
    while not path.is_file():
        if process.poll() is not None and not path.is_file():
            raise SystemExit((path.parent / "log.txt").read_text()[-3000:])
        time.sleep(0.2)
    return path


def counted(trial: Trial) -> np.ndarray:
    """Bits of each linear's candidates as the library counts them: codes, and of each group a step of 16 bits and a
    zero of as many as a code has."""
    shapes = [trial.mixer.weights[-1][name].shape for name in trial.mixer.names]
    of = [[n_out * (n_in * bits + -(-n_in // size) * (16 + bits)) for bits, size in GRIDS] for n_out, n_in in shapes]
    return np.array(of, dtype=np.int64)


def within(trial: Trial, sizes: np.ndarray, chosen: np.ndarray, usable: list[int]) -> np.ndarray:
    """The best mix of some candidates that takes no more than a choice by either way to count; sizes: [2, linears,
    candidates]."""
    rows = np.arange(len(chosen))
    costs = as_codes(trial.fitted.costs)[:, usable]
    groups = trial.mixer.groups
    of_groups = np.stack([costs[group].sum(0) for group in groups])
    sums = np.stack([sizes[:, group][:, :, usable].sum(1) for group in groups], axis=1)
    found = np.empty_like(chosen)
    for group, k in zip(groups, allocate(of_groups, sums, sizes[:, rows, chosen].sum(1)), strict=True):
        found[group] = usable[k]
    return found


def main() -> None:
    from frontier import texts
    from transformers import AutoTokenizer

    parser = parsed(__doc__)
    parser.add_argument("--environment", type=Path, required=True)
    parser.add_argument("--bits", type=float, default=3.8, help="a weight, as the library counts them")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--width", type=int, default=512, help="tokens of a calibration text")
    parser.add_argument("--out", type=Path, default=Path("autoscheme.csv"))
    options = parser.parse_args()
    checkpoint = options.converted / "checkpoint"
    names = list(json.loads((options.converted / "convert.json").read_text())["linears"])
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    first, judged = texts(checkpoint, options.text, options.calibration)
    following = [*(each[:OVERLAP] for each in first[1:]), judged["wikitext"][0][:OVERLAP]]
    words = [tokenizer.decode([*a.tolist(), *b.tolist()]) for a, b in zip(first, following, strict=True)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "theirs").mkdir()
        process = started(options.converted, words, names, folder / "theirs", options)
        try:
            compare(options, folder, process)
        finally:
            process.kill()


def compare(options: Any, folder: Path, process: subprocess.Popen) -> None:
    given = options.converted, options.text, options.calibration, options.limit
    trial = Trial(*given, folder, options.out)
    mixer, rows = trial.mixer, np.arange(len(trial.mixer.names))
    found = json.loads(waited(folder / "theirs/widths.json", process).read_text())
    of_grid = {grid: k for k, grid in enumerate(GRIDS)}
    theirs = np.array([of_grid[each["bits"], each["group_size"]] for each in map(found["widths"].get, mixer.names)])
    sizes = np.stack([mixer.sizes[:, :-1], counted(trial)])
    choices = {THEIRS: theirs}
    choices[f"{MIX} of its options"] = within(trial, sizes, theirs, [of_grid[bits, GROUP_SIZE] for bits in OPTIONS])
    choices[f"{MIX} of all candidates"] = within(trial, sizes, theirs, list(range(len(GRIDS))))
    for what, chosen in choices.items():
        nominal = float(sizes[1, rows, chosen].sum() / mixer.numbers)
        trial.measured("parallel", what, chosen)
        trial.note(what=what, stored=mixer.bits(chosen), as_the_library_counts=nominal)
    asymmetric = all(not each["sym"] for each in found["widths"].values())
    print(f"its choice took {found['seconds']:.1f} s; all with zero points: {asymmetric}", flush=True)
    order = [(chain, what) for chain in options.chains for what in choices if what != THEIRS]
    for chain, what in order:
        trial.measured(chain, what, choices[what])
    own = waited(folder / "theirs/result.json", process)
    print(f"theirs: {own.read_text()}", flush=True)
    weights = load_file(folder / "theirs/weights.safetensors")
    model = mixer.load({})
    for name in mixer.names:
        owner = model.get_submodule(name)
        owner.weight.data = weights[name].to(owner.weight.device)
    trial.judged(THEIRS, THEIRS, model, bits=mixer.bits(theirs))
    tuned = trial.sums[f"{THEIRS}-{THEIRS}"]
    for chain, what in order:
        told = trial.differences(trial.sums[f"{chain}-{what}"], tuned)
        trial.note(chain=chain, what=f"{what} minus {THEIRS}, tuned by AutoRound", **told)


if __name__ == "__main__":
    main()
