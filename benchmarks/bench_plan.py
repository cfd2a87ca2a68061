"""What the plan says of bench.py's steps, before they run and beside what they took."""

import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench_models import Case
from quant.recipe import keys
from quant.workflow.estimates.amounts import MAPPED, MB, Ask, Estimate
from quant.workflow.estimates.jobs import OF_MODEL
from quant.workflow.estimates.rates import Rates, lanes, within

MAPS = Path("/proc/self/smaps")
LOOKS = 0.1  # seconds from one to the next
NEAR = 0.25  # of what is measured


def rule_of(recipe: dict[str, Any]) -> str:
    return "quantize_with_model" if keys.way_of(recipe) == "model" else "quantize"


class Plan(NamedTuple):
    """Of a device at its rates; room: its bytes; memory: the host's."""

    rates: Rates
    where: str
    room: float
    memory: float

    def of(self, case: Case, rule: str, recipe: dict[str, Any] | None = None) -> Estimate:
        """What the plan says of a rule's job."""
        (n, width), (m, length) = case.calibration, case.evaluation
        config = {
            "compute": {"dtype": "auto", "batch_tokens": "auto"},
            "calibration": {"n_calib": n, "seq_len": width},
            "datasets": {"heldout": {"n_samples": m, "seq_len": length, "kl_tokens": None}},
            "methods": {"method": recipe},
        }
        wildcards = {"dataset": "heldout"} | ({} if recipe is None else {"method": "method"})
        return OF_MODEL[rule](Ask(case.shape, config, wildcards, self.where == "cuda", self.room, self.memory))

    def by_block(self, case: Case) -> Estimate:
        """Of an evaluation where the device does not hold the model."""
        return self._replace(room=0).of(case, "evaluate_original")

    def loaded(self, case: Case, recipe: dict[str, Any] | None = None) -> Estimate:
        """Of one whose model is loaded already: the original's, or a method's beside the original's logits."""
        rule = "evaluate_original" if recipe is None else "evaluate"
        return self.of(case, rule, recipe)._replace(read=0, written=0, before=0)

    def said(self, planned: Estimate) -> dict[str, float]:
        """Of a step that runs in this process."""
        read, work, written = lanes(planned, self.rates, self.where)
        return {
            "plan_s": within(planned, self.rates, self.where),
            "plan_gpu_mb": planned.gpu / 1e6,
            "plan_ram_mb": planned.ram / 1e6,
            "plan_read_s": planned.before / self.rates.read + read,
            "plan_work_s": work,
            "plan_write_s": written,
        }

    def predict(self, case: Case, chosen: dict[str, dict[str, Any]]) -> None:
        """Prints what it says of every step, before any of them has run."""
        found = {"statistics": self.of(case, "collect_statistics")}
        if any("noisy" in keys.statistics_files(recipe) for recipe in chosen.values()):
            found["noisy statistics"] = self.of(case, "collect_noisy")
        found |= {name: self.of(case, rule_of(recipe), recipe) for name, recipe in chosen.items()}
        found |= {"evaluation by block": self.by_block(case), "evaluation": self.loaded(case)}
        for step, planned in found.items():
            print(f"plan {step}: {', '.join(f'{k} {v:.4g}' for k, v in self.said(planned).items())}", flush=True)


def beside(rows: list[dict[str, Any]]) -> str:
    """Planned over measured of every step that the plan spoke of, and how many are near."""
    lines, near = [], 0
    known = [row for row in rows if row.get("plan_s")]
    for row in known:
        measured = row.get("call_s") or row["seconds"]
        near += abs(row["plan_s"] / measured - 1) <= NEAR
        sizes = [f"{row[f'plan_{key}']:.0f} MB of {key.split('_')[0]} planned, {row[of]:.0f} measured"
                 for key, of in (("gpu_mb", "gpu_peak_mb"), ("ram_mb", "ram_mb")) if row.get(of)]  # fmt: skip
        name = " ".join([row["step"], *([row["recipe"]] if row.get("recipe") else [])])
        said = f"{name}: {row['plan_s']:.2f} s planned, {measured:.2f} measured, {row['plan_s'] / measured - 1:+.0%}"
        lines.append("; ".join([said, *sizes]))
    return "\n".join([*lines, f"within {NEAR:.0%}: {near} of {len(known)}"])


def held() -> float | None:
    """MB that this process has of the host's memory; of weights that it has mapped, as many as plans count, since where
    memory is short their pages are given back. None where the system does not say."""
    mapped, own, is_weights = 0, 0, False
    try:
        lines = MAPS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        word, _, rest = line.partition(" ")
        if not word.endswith(":"):  # a mapping's first line, its file at the end
            is_weights = line.endswith(".safetensors")
        elif word == "Rss:":
            kilobytes = int(rest.split()[0])
            mapped, own = mapped + is_weights * kilobytes, own + (not is_weights) * kilobytes
    return (1024 * own + min(1024 * mapped, MAPPED)) / MB


class HostPeak:
    """The most of `held` since `forget`, looked at ten times a second by a thread of its own."""

    def __init__(self) -> None:
        self._most: float | None = None
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.look()
            time.sleep(LOOKS)

    def forget(self) -> None:
        self._most = None

    def look(self) -> float | None:
        now = held()
        self._most = now if now is None or self._most is None else max(now, self._most)
        return self._most
