"""Do tasks order methods as perplexity and KL do? tasks.py CONVERTED [--text FILE] [--methods NAME …] [--out FOLDER].

CONVERTED is results/{model}/original of a finished conversion. Quantises by recipes of config.yaml, calibrated as the
default study is, asks each of --items of every embedded task and evaluates it on the held-out part of the Python
language reference (and on FILE) in --windows of 1,024, in float32. Each method's sums and answers go to FOLDER as soon
as it has them; a later run measures those that are not there (`--methods` with no name: none), and at most until
--seconds are over. Prints rank correlations over all methods that FOLDER has, by the likelihood of right answers and
by right answers, of each task and of all; then the pairs of methods that are told apart by a task (of likelihoods,
paired by item) and by the text: in how many the same method is better, and which turn. Minutes on a GPU.
"""

import argparse
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow_scripts"))

from frontier import SEED, Study, judge

from quant.comparison.correlation import rank_correlation
from quant.comparison.paired import holm, paired_differences
from quant.data import texts
from quant.data.embedded_tasks import RULES, embedded
from quant.data.task_items import Task, requests_of
from quant.evaluation import perplexity
from quant.evaluation.head import Head
from quant.evaluation.items import log_likelihoods
from quant.evaluation.tasks import answered
from quant.models.tokenization import tokenizers
from quant.runtime.compute import batch_tokens, device
from study import methods

# in an order that tells most first: what the default study asks, then what lies between
METHODS = [
    "simple_int4",
    "awq_clip_gptq_shared",
    "gw_awq",
    "gw_praq",
    "gw_awq_asym_l2",
    "rtn_g",
    "rtn_g_sym",
    "full_awq",
    "full_praq",
    "gptq_clip",
    "awq_clip",
    "mixed_awq",
    "mixed_praq",
    "rtn_clip",
    "gwh_praq",
    "gptq",
    "awq_gptq",
    "frontier_fast",
    "gw_awq_flip",
    "awq_clip_gptq",
]
ORIGINAL = "original"
WIDTH = 1024
RESAMPLES = 39_999  # p of all pairs, corrected, can fall below 5 %
LEVEL = 0.05
Found = dict[str, np.ndarray]  # "nll TEXT", "kl TEXT" [windows]; "log_p TASK", "right TASK" [items]


def read_texts(checkpoint: Path, more: Path | None, n_windows: int) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """Calibration sequences, and the windows to evaluate by text."""
    tokenizer = tokenizers.load(checkpoint)

    def windows(words: list[str], length: int, n: int) -> list[Tensor]:
        return texts.sequences(tokenizer, words, "windows", length, n, None, "text")

    spec = {part: texts.read_texts({"pydoc_topics": part}) for part in ("calibration", "heldout")}
    judged = {"python": windows(spec["heldout"], WIDTH, n_windows)}
    if more is not None:
        judged[more.stem] = windows([more.read_text(encoding="utf-8")], WIDTH, n_windows)
    return windows(spec["calibration"], 512, 64), judged


def made(name: str, n: int) -> Task:
    return Task(name, RULES[name].score, RULES[name].words, embedded(name, n, SEED), {})


class Asking:
    """The original, the texts and the items that every method is judged on."""

    def __init__(self, checkpoint: Path, judged: dict[str, list[Tensor]], n_items: int, where: str) -> None:
        self._judged, self._where = judged, where
        self._original = perplexity.load_model(checkpoint, where, torch.float32)
        self._tasks = [made(name, n_items) for name in RULES]
        self._requests = [requests_of(task, checkpoint) for task in self._tasks]

    @torch.inference_mode()
    def of(self, model: PreTrainedModel | None) -> Found:
        """model: None is the original itself."""
        own = self._original if model is None else model
        found: Found = {}
        for name, sequences in self._judged.items():
            sums = judge(self._original, own, sequences, self._where)
            found |= {f"nll {name}": sums[:, 1], f"kl {name}": sums[:, 2]}
        head = Head(own, self._where)
        for task, requests in zip(self._tasks, self._requests, strict=True):
            likelihoods = log_likelihoods(head, requests, batch_tokens("auto", self._where))
            rows = [answered(item, one, task.score) for item, one in zip(task.items, likelihoods, strict=True)]
            found[f"log_p {task.name}"] = np.array([row["right_log_p"] for row in rows])
            found[f"right {task.name}"] = np.array([row["right"] for row in rows])
        return found


def save(folder: Path, method: str, found: Found) -> None:
    arrays: dict[str, Any] = {**found}
    np.savez(folder / f"{method}.npz", **arrays)


def measure(options: argparse.Namespace) -> None:
    begun, where, known = time.perf_counter(), device("auto"), methods()
    torch.backends.cuda.matmul.allow_tf32 = False
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.converted / "checkpoint"
    sequences, judged = read_texts(checkpoint, options.text, options.windows)
    asking = Asking(checkpoint, judged, options.items, where)
    if not (options.out / f"{ORIGINAL}.npz").is_file():
        save(options.out, ORIGINAL, asking.of(None))
    with tempfile.TemporaryDirectory() as name:
        study = Study(options.converted, sequences, Path(name), where)
        print(f"statistics {study.statistics():.1f} s, {time.perf_counter() - begun:.1f} s so far", flush=True)
        for method in options.methods:
            if (options.out / f"{method}.npz").is_file() or time.perf_counter() - begun > options.seconds:
                continue
            seconds, _, _ = study.quantise(known[method])
            quantised = perplexity.load_model(study.quantised, where, torch.float32)
            begun_asking = time.perf_counter()
            found = asking.of(quantised)
            asked = time.perf_counter() - begun_asking
            del quantised
            save(options.out, method, found)
            words = ", ".join(f"{key} {one.mean():.4f}" for key, one in found.items() if "kl" in key or "right" in key)
            print(
                f"{method}: {words}; {seconds:.1f} s, asked in {asked:.1f} s, at {time.perf_counter() - begun:.0f} s",
                flush=True,
            )


def rises(found: dict[str, Found]) -> pd.DataFrame:
    """By method: of each text the rise of NLL and KL, nats a window; of each task the rise of the right answer's NLL,
    nats an item (log_p), and right answers lost, a share (right); of all tasks both means, each task's in units of its
    largest rise (log_p)."""
    original = found[ORIGINAL]
    frame = pd.DataFrame(
        {
            method: {
                key: float(one.mean() - original[key].mean()) * (1 if key.startswith(("nll", "kl")) else -1)
                for key, one in sums.items()
            }
            for method, sums in found.items()
            if method != ORIGINAL
        }
    ).T
    log_p = frame[[f"log_p {name}" for name in RULES]]
    frame["log_p all"] = (log_p / log_p.abs().max()).mean(axis=1)
    frame["right all"] = frame[[f"right {name}" for name in RULES]].mean(axis=1)
    return frame


def order_lines(frame: pd.DataFrame) -> list[str]:
    """Rank correlations of each task's measures with each text's; p corrected over those of all tasks' likelihoods."""
    by_text = [name for name in frame if name.startswith(("nll", "kl"))]
    rows = {
        (measure, text): rank_correlation(frame[measure].to_numpy(), frame[text].to_numpy())
        for measure in frame
        if measure.startswith(("log_p", "right"))
        for text in by_text
    }
    asked = [key for key in rows if key[0] == "log_p all"]
    corrected = dict(zip(asked, holm([rows[key].p for key in asked]), strict=True))
    return [
        f"{measure} against {text}: {one.text()}, p {one.p:.4f}"
        + (f", {corrected[measure, text]:.4f} corrected for {len(asked)}" if (measure, text) in corrected else "")
        for (measure, text), one in rows.items()
    ]


def told(found: dict[str, Found], key: str) -> dict[tuple[str, str], float]:
    """By pair of methods the difference first minus second in what a higher value of is worse, where it is shown; p
    corrected for all pairs."""
    names = [name for name in found if name != ORIGINAL]
    pairs, sign = list(combinations(names, 2)), -1.0 if key.startswith("log_p") else 1.0
    rows = sign * np.stack([found[a][key] - found[b][key] for a, b in pairs])
    each = paired_differences(rows, np.ones(rows.shape[1]), RESAMPLES, SEED)
    p = holm([one.p for one in each])
    return {pair: one.mean for pair, one, q in zip(pairs, each, p, strict=True) if q <= LEVEL}


def pair_lines(found: dict[str, Found]) -> list[str]:
    by_key: dict[str, Any] = {
        key: told(found, key) for key in found[ORIGINAL] if key.startswith(("nll", "kl", "log_p"))
    }
    lines, n = [], len(found) - 1
    for task in RULES:
        for text in [key for key in by_key if not key.startswith("log_p")]:
            own, other = by_key[f"log_p {task}"], by_key[text]
            both = [pair for pair in own if pair in other]
            turned = [pair for pair in both if own[pair] * other[pair] < 0]
            words = ", ".join(f"{a} over {b}" if own[a, b] < 0 else f"{b} over {a}" for a, b in turned)
            lines.append(
                f"{task} tells {len(own)} of {n * (n - 1) // 2} pairs apart, {text} {len(other)}, both {len(both)}; "
                f"the same is better in {len(both) - len(turned)}" + (f"; by the task alone {words}" if turned else "")
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("converted", type=Path)
    parser.add_argument("--text", type=Path, help="UTF-8, evaluated besides")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--items", type=int, default=500, help="of each task, at most")
    parser.add_argument("--windows", type=int, default=32, help="of each text, at most")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no method is begun after these")
    parser.add_argument("--out", type=Path, default=Path("tasks"))
    options = parser.parse_args()
    if options.methods:
        measure(options)
    found = {path.stem: dict(np.load(path)) for path in sorted(options.out.glob("*.npz"))}
    frame = rises(found)
    print(frame.sort_values("log_p all").to_string(float_format="{:.4f}".format), flush=True)
    print("\n".join(order_lines(frame)), flush=True)
    print("\n".join(pair_lines(found)))


if __name__ == "__main__":
    main()
