"""Time and memory of every step on a random model of a named shape: bench.py [SHAPE] [--depth N] [--recipes NAME …]
(`make bench SHAPE=llama-3-70b DEPTH=8`).

Times statistics, loading, each recipe's search and rounding, a whole quantize job from process start to files on disk,
and evaluation; on a GPU also the seconds in which it was busy (gpu_s), of one more run under a profiler. Beside each
stands the limit: what its products and copies take at the device's measured rates; times_limit is gpu_s, or seconds
where there is none, over that. Then how cost grows with depth, width, tokens and methods. Writes bench.csv and
bench.svg into --out. AutoAWQ runs on the same weights and tokens where its environment (rule build_library) is there.
"""

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow_scripts"))

from bench_growth import growth
from bench_plan import HostPeak, Plan, beside, rule_of

from bench_draw import draw
from bench_limits import evaluation_limit, gpu_seconds, search_limit, statistics_limit
from bench_models import CASES, Case, make_model, random_tokens
from quant.calibration.material import Material
from quant.calibration.reader import Statistics
from quant.data import tokens
from quant.files.artifacts import read_json
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source, provenance_of
from quant.recipe import keys
from quant.recipe.recipe import Recipe
from quant.runtime.compute import Compute, batch_tokens, clock, device
from quant.workflow.estimates.amounts import Estimate
from quant.workflow.estimates.rates import measure_rates
from study import PATTERNS, methods

GB = 1e9
UNITS = {"model": ("TFLOP/s", 1e-12), "float32": ("TFLOP/s", 1e-12), "call": ("µs", 1e6), "python": ("ms", 1e3)}
AUTOAWQ = ROOT / "results/environments/autoawq"


RESEARCH = ["simple_int4", "full_awq", "full_praq", "robust_praq", "gw_awq", "gw_praq", "gw_awq_asym_l2", "gw_awq_flip",
            "gwh_praq", "mixed_awq", "mixed_praq"]  # fmt: skip
RECIPES = [*RESEARCH, "rtn_g", "rtn_clip", "gptq", "awq_clip", "awq_clip_gptq"]


def recipes(names: list[str], case: Case) -> dict[str, dict[str, Any]]:
    """Of config.yaml, at the shape's group size and calibration."""
    known = methods()
    found = {name: known[name] | {"n_calib": case.calibration[0]} for name in names}
    for recipe in found.values():
        recipe["group_size"] = recipe["group_size"] if recipe["group_size"] == -1 else case.group_size
    return found


def size_of(checkpoint: Path) -> int:
    """Bytes of its weights, in however many files."""
    return sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))


# the steps


class Bench:
    """One shape on one device; rows of what was measured."""

    def __init__(self, case: Case, where: str, folder: Path, repeats: int, profiled: bool = True) -> None:
        self.case, self.where, self.folder, self.repeats = case, where, folder, repeats
        self.profiled, self.quiet, self.host = profiled, False, HostPeak()
        self.rates = measure_rates(where, case.dtype, folder)
        room = torch.cuda.mem_get_info()[1] if where == "cuda" else float("inf")
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.plan = Plan(self.rates, where, room, memory)
        self.rows: list[dict[str, Any]] = []
        for name, value in self.rates._asdict().items():
            unit, times = UNITS.get(name, ("GB/s", 1e-9))
            print(f"rate {name}: {value * times:.2f} {unit}", flush=True)

    def note(
        self,
        step: str,
        seconds: float,
        limit: float | None,
        case: Case,
        gpu_s: float | None = None,
        planned: Estimate | None = None,
        **more: Any,
    ) -> None:
        of_gpu = torch.cuda.max_memory_allocated() / 1e6 if self.where == "cuda" else None
        row = {"step": step, "seconds": seconds, "gpu_s": gpu_s, "limit_s": limit}
        row["times_limit"] = limit and (gpu_s or seconds) / limit
        if planned is not None:
            row |= self.plan.said(planned)
        row |= {"depth": case.depth, "width": case.shape.hidden, "tokens": case.calibration[0] * case.calibration[1]}
        self.rows.append(row | {"gpu_peak_mb": of_gpu, "ram_mb": self.host.look()} | more)
        words = (
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in self.rows[-1].items()
        )
        if not self.quiet:
            print(", ".join(words), flush=True)

    def reset(self) -> None:
        """What comes is measured by itself, as a job of its own would be."""
        gc.collect()
        if self.where == "cuda":
            torch.cuda.empty_cache()
            torch._C._host_emptyCache()
            torch.cuda.reset_peak_memory_stats()
        self.host.forget()

    def busy(self, work: Callable[[], Any]) -> float | None:
        return gpu_seconds(work) if self.where == "cuda" and self.profiled else None

    def compute(self, case: Case) -> Compute:
        return Compute(self.where, getattr(torch, case.dtype), batch_tokens("auto", self.where))

    def warm(self, case: Case, chosen: dict[str, dict[str, Any]]) -> None:
        """All of it once on a block of that width and few tokens: kernels are compiled and libraries loaded."""
        few = case.having(num_hidden_layers=1, vocab_size=2048)._replace(calibration=(8, case.calibration[1]))
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            other = Bench.__new__(Bench)
            other.__dict__ |= self.__dict__ | {"folder": Path(name), "rows": [], "quiet": True, "repeats": 1}
            model = make_model(other.folder / "model", few, self.where)
            files = other.statistics(model, few)
            if any("noisy" in keys.statistics_files(recipe) for recipe in chosen.values()):
                files = other.noisy(model, few, files)
            for recipe in chosen.values():
                quantize(model, other.folder / "quantised", recipe, files, self.where)
            other.by_block(model / "checkpoint", few)

    def statistics(self, model: Path, case: Case, step: str = "statistics") -> dict[str, Path]:
        """Collects them `repeats` times; the median is noted."""
        from quant.calibration.statistics import collect

        n, width = case.calibration
        calibration = random_tokens(self.folder / "tokens", n, width, case.shape.vocabulary, 1)
        files = {key: self.folder / f"{key}.safetensors" for key in ("channels", "moments")}
        made = {"model_fingerprint": read_json(model / "convert.json")["fingerprint"]}
        material, compute = Material(model / "checkpoint", calibration, made), self.compute(case)
        self.reset()

        def work() -> None:
            collect(material, *files.values(), compute)

        spent = statistics.median(self.timed(work) for _ in range(self.repeats))
        on_disk = sum(path.stat().st_size for path in files.values()) / 1e6
        limit = statistics_limit(case.shape, self.rates, n * width, width)
        planned = self.plan.of(case, "collect_statistics")
        self.note(step, spent, limit, case, self.busy(work), planned, disk_mb=on_disk)
        return files

    def noisy(self, model: Path, case: Case, files: dict[str, Path]) -> dict[str, Path]:
        """Robust-PRAQ's statistics, beside the others."""
        from quant.calibration.noisy import collect_noisy

        path = self.folder / "noisy.safetensors"
        made = {"model_fingerprint": read_json(model / "convert.json")["fingerprint"]}
        noise = {key: methods()["robust_praq"][key] for key in ("noise_std", "n_noise_samples", "seed")}
        material = Material(model / "checkpoint", tokens.load(self.folder / "tokens"), made)
        compute = self.compute(case)

        def work() -> None:
            collect_noisy(material, files["channels"], str(path), noise, compute)

        self.reset()
        spent = self.timed(work)
        self.note("noisy statistics", spent, None, case, self.busy(work), self.plan.of(case, "collect_noisy"))
        return files | {"noisy": path}

    def timed(self, work: Callable[[], Any]) -> float:
        begun = clock(self.where)
        work()
        return clock(self.where) - begun

    def quantize(
        self, model: Path, case: Case, name: str, recipe: dict[str, Any], files: dict[str, Path], step: str = "search"
    ) -> Path:
        """One recipe in this process: search and rounding of all linears, and the whole call."""
        target = self.folder / "quantised"
        self.reset()
        work, calls = [], []
        for _ in range(self.repeats):
            shutil.rmtree(target, ignore_errors=True)
            begun = clock(self.where)
            record = quantize(model, target, recipe, files, self.where)
            calls.append(clock(self.where) - begun)
            work.append(sum(row["milliseconds"] for row in record["linears"]) / 1e3)
        limit = search_limit(case.shape, self.rates, recipe)
        planned = self.plan.of(case, rule_of(recipe), recipe)
        busy = self.busy(lambda: quantize(model, target, recipe, files, self.where))
        spent = statistics.median(calls)
        self.note(step, statistics.median(work), limit, case, busy, planned, recipe=name, call_s=spent)
        return target

    def together(self, case: Case) -> None:
        """The research's methods and their statistics, one after the other, files and all."""
        rows = [row for row in self.rows if row.get("recipe") in RESEARCH or "statistics" in row["step"]]
        if {row.get("recipe") for row in rows} >= set(RESEARCH):
            spent = sum(row.get("call_s") or row["seconds"] for row in rows)
            busy = sum(row["gpu_s"] for row in rows) if self.where == "cuda" else None
            self.note(f"{len(RESEARCH)} research methods and statistics", spent, None, case, busy)

    def job(self, model: Path, case: Case, name: str, recipe: dict[str, Any], files: dict[str, Path]) -> None:
        """The same from process start to files on disk."""
        paths = {key: str(path) for key, path in files.items()}
        given = {"model": str(model), "target": str(self.folder / "job"), "recipe": recipe, "files": paths}
        begun = time.perf_counter()
        subprocess.run([sys.executable, __file__, "--job", json.dumps(given | {"where": self.where})], check=True)
        bytes_ = size_of(model / "checkpoint")
        self.note("quantize job", time.perf_counter() - begun, bytes_ / self.rates.disk, case, recipe=name)

    def evaluation(self, checkpoint: Path, case: Case, recipe: dict[str, Any]) -> None:
        """Loading, then windows of the shape's length. recipe: what made it."""
        from quant.evaluation.divergence import Reference
        from quant.evaluation.head import Head
        from quant.evaluation.perplexity import load_model, measure

        n, width = case.evaluation
        heldout = random_tokens(self.folder / "heldout", n, width, case.shape.vocabulary, 2)
        self.reset()
        begun = clock(self.where)
        model = load_model(checkpoint, self.where, getattr(torch, case.dtype))
        size = size_of(checkpoint)
        self.note("loading", clock(self.where) - begun, size / self.rates.off, case)
        limit = evaluation_limit(case.shape, self.rates, n * width, width)
        kept: dict[int, torch.Tensor] = {}
        with torch.inference_mode():
            head = Head(model, self.where)
            measure(head, heldout, batch_tokens("auto", self.where), keep=kept.__setitem__)
        for kind, reference in (("nll", None), ("nll and kl", Reference(kept.__getitem__, head.logits))):
            measure(head, heldout._replace(sequences=heldout.sequences[:1]), width, reference)
            self.reset()
            found = []

            def work(reference: Reference | None = reference, found: list[float] = found) -> None:
                _, speed = measure(head, heldout, batch_tokens("auto", self.where), reference)
                found.append(speed)

            spent = statistics.median(self.timed(work) for _ in range(self.repeats))
            speed, busy = statistics.median(found), self.busy(work)
            planned = self.plan.loaded(case, None if reference is None else recipe)
            self.note(
                f"evaluation, {kind}", n * width / speed, limit, case, busy, planned, whole_s=spent, tokens_per_s=speed
            )

    def by_block(self, checkpoint: Path, case: Case) -> None:
        """The same where the device does not hold the model; the limit: the slower of reading it and the products."""
        from quant.evaluation.by_block import ByBlock
        from quant.evaluation.perplexity import measure

        n, width = case.evaluation
        heldout = random_tokens(self.folder / "heldout", n, width, case.shape.vocabulary, 2)
        self.reset()
        begun = clock(self.where)
        with torch.inference_mode():
            _, speed = measure(
                ByBlock(checkpoint, heldout.sequences, self.compute(case)), heldout, self.compute(case)[2]
            )
        size = size_of(checkpoint)
        limit = max(evaluation_limit(case.shape, self.rates, n * width, width), size / self.rates.off)
        spent = clock(self.where) - begun
        more = {"read_gb_per_s": size / spent / GB, "tokens_per_s": speed}
        self.note("evaluation by block", spent, limit, case, planned=self.plan.by_block(case), **more)


def quantize(model: Path, target: Path, recipe: dict[str, Any], files: dict[str, Path], where: str) -> dict[str, Any]:
    """What the rule's script does."""
    wanted = {key: str(files[key]) for key in keys.statistics_files(recipe)}
    record = read_json(model / "convert.json")
    wanted = {key: path for key, path in wanted.items() if key != "tokens"}
    known = Statistics(wanted, record["fingerprint"], PATTERNS, plain_share=recipe["plain_share"])
    source, out = Source(model / "checkpoint", record["linears"]), Output(target, target.parent / "folds")
    if keys.way_of(recipe) == "model":
        from quant.methods.with_model.quantize import quantize_with_model

        ids = tokens.load(target.parent / "tokens")
        compute = Compute.of({"device": where, "dtype": "auto", "batch_tokens": "auto"}, source.folder)
        made: Any = {"recipe": recipe}
        return dict(quantize_with_model(source, out, known, recipe, ids, compute, made))
    return dict(quantize_checkpoint(source, out, known, Recipe.of(recipe), where, {}))


def quantize_job(given: dict[str, Any]) -> None:
    files = {key: Path(path) for key, path in given["files"].items()}
    quantize(Path(given["model"]), Path(given["target"]), given["recipe"], files, given["where"])


def autoawq(bench: Bench, model: Path, case: Case) -> None:
    """The library on the same weights and tokens, in its own environment."""
    if not (AUTOAWQ / "complete").exists():
        print(f"AutoAWQ: left out, {AUTOAWQ.relative_to(ROOT)} is not there (its rule, build_library, makes it)")
        return
    from quant.methods.library import quantize_library

    recipe = recipes(["autoawq"], case)["autoawq"]
    (bench.folder / "awq/checkpoint").mkdir(parents=True)
    begun = time.perf_counter()
    converted, names = read_json(model / "convert.json"), SimpleNamespace(model="random", method="autoawq")
    record = quantize_library(
        Source.of(model / "checkpoint", converted), Output(bench.folder / "awq/checkpoint", bench.folder / "awq/folds"),
        bench.folder / "tokens", AUTOAWQ, provenance_of(converted, recipe, names), bench.where,
        batch_tokens("auto", bench.where),
    )  # fmt: skip
    spent = time.perf_counter() - begun
    bench.note("search", record["summary"]["quantize_s"], None, case, recipe="autoawq", call_s=spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = device("auto")
    parser.add_argument("shape", nargs="?", choices=CASES, default="small" if where == "cpu" else "minicpm-2b")
    parser.add_argument("--depth", type=int, help="decoder blocks, if not the shape's own")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--jobs", nargs="*", default=["gw_awq", "gptq"], help="recipes timed as a process of their own")
    parser.add_argument("--only-by-block", action="store_true", help="for models that the device does not hold")
    parser.add_argument("--no-profile", action="store_true", help="leave out the seconds in which a GPU was busy")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-growth", action="store_true", help="leave out other depths, widths and token numbers")
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    parser.add_argument("--folder", type=Path, help="where models and statistics go; default: a temporary directory")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        quantize_job(json.loads(options.job))
        return
    case = CASES[options.shape]
    case = case.having(num_hidden_layers=options.depth or case.depth)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        bench = Bench(case, where, Path(name), options.repeats, not options.no_profile)
        try:
            measure(bench, case, options)
        finally:  # what was measured before something failed stays
            print(beside(bench.rows), flush=True)
            table = pd.DataFrame(bench.rows)
            table.insert(0, "device", torch.cuda.get_device_name() if where == "cuda" else "cpu")
            table.to_csv(options.out / "bench.csv", index=False)
    draw(table, options.out / "bench.svg", f"{options.shape}, {table['device'].iloc[0]}")


def measure(bench: Bench, case: Case, options: argparse.Namespace) -> None:
    chosen = recipes(options.recipes, case)
    bench.plan.predict(case, chosen)
    bench.warm(case, chosen)
    begun = clock(bench.where)
    model = make_model(bench.folder / "model", case, bench.where)
    size = size_of(model / "checkpoint")
    bench.note("writing", clock(bench.where) - begun, size / bench.rates.disk, case)
    files = bench.statistics(model, case)
    if any("noisy" in keys.statistics_files(recipe) for recipe in chosen.values()):
        files = bench.noisy(model, case, files)
    for name, recipe in chosen.items():
        target = bench.quantize(model, case, name, recipe, files)
    bench.together(case)
    for name in options.jobs:
        bench.job(model, case, name, recipes([name], case)[name], files)
    bench.by_block(model / "checkpoint", case)
    if not options.only_by_block:
        bench.evaluation(target, case, recipe)
    autoawq(bench, model, case)
    if not options.no_growth:
        growth(bench, model, case, recipes(["gw_awq"], case)["gw_awq"])


if __name__ == "__main__":
    main()
