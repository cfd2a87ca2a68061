"""Budgets beside one width, by the frontier's chain, on WikiText-2 test: mixes.py CONVERTED TEXT [--bits 3.916 3.5].

CONVERTED and TEXT as frontier.py takes them, calibrated on the same 128×512 tokens. Candidates are some widths and
group sizes of a recipe that rounds each linear alone; widths are chosen by their predicted damage, corrected by swaps
on the calibration text, and the model is quantised with them by `frontier_fast` and by `frontier_3bit` (reconstructed
and tuned), each width for all likewise (docs/methods.md, Budgets). Prints what a mix's KL is of the straight line
between 3 and 4 bits, and its difference from each width; writes rows to OUT, each window's sums beside it. Needs a GPU
to be quick.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from budget import SECTIONS, Judge, Mixer, interval
from frontier import CALIBRATION, texts
from torch import nn

from quant.comparison.mixing import on_the_line
from quant.methods.budgets.allocation import allocate
from quant.methods.budgets.swaps import Corrected, corrected, parts_of
from quant.runtime.compute import device
from study import methods

GRIDS = [(2, 64), (3, 192), (3, 64), (3, 32), (4, 192), (4, 64), (8, 64)]  # 192 divides 576 and 1,536
LOW, HIGH = (3, 64), (4, 64)  # of the line
CHAINS = ("frontier_fast", "frontier_3bit")
MIX = "mix"
SWAP_SEQUENCES = 8  # of the calibration text


def label_of(grid: tuple[int, int]) -> str:
    return "{} bits in groups of {}".format(*grid)


def as_codes(costs: np.ndarray) -> np.ndarray:
    """Without a linear as it is, which the chains do not leave."""
    return np.concatenate([costs[:, :-1], np.full((len(costs), 1), np.nan)], axis=1)


class Trial:
    """Assignments of widths to linears, each measured on the same windows and beside others."""

    def __init__(
        self, converted: Path, text: Path, calibration: int, limit: int | None, folder: Path, out: Path
    ) -> None:
        self._begun, self._out, self._where = time.perf_counter(), out, device("auto")
        self._known, self._rows = methods(), list[dict[str, Any]]()
        torch.backends.cuda.matmul.allow_tf32 = False
        self.sequences, judged = texts(converted / "checkpoint", text, calibration)
        recipe = self._known["awq_clip_gptq_shared"] | {"search_bits": 4, "search_group_size": 64, "refine": 3}
        mixer = self.mixer = Mixer(converted, self.sequences, folder, self._where, recipe, GRIDS)
        mixer.load({})
        self._judge = Judge(mixer.model, judged["wikitext"][:limit], self._where)
        self.single = {grid: np.full(len(mixer.names), k) for k, grid in enumerate(GRIDS)}
        self.fitted = self._swaps()
        self.sums: dict[str, np.ndarray] = {}
        self._sized: dict[str, dict[str, tuple[float, float]]] = {}  # by chain: bits and KL

    def _swaps(self) -> Corrected:
        mixer, own = self.mixer, Judge(self.mixer.model, self.sequences[:SWAP_SEQUENCES], self._where)
        parts = parts_of(mixer.record["linears"], SECTIONS)
        at = {part: [mixer.names.index(each) for each in linears] for part, linears in parts.items()}
        columns = range(len(GRIDS))
        swaps = {(part, k): own.kl(mixer.load(dict.fromkeys(at[part], k))) for part in parts for k in columns}
        whole = {k: own.kl(mixer.load(chosen)) for k, chosen in enumerate(self.single.values())}
        found = corrected(mixer.costs, mixer.names, parts, swaps, whole)
        print(f"[{self.seconds:5.1f}] {len(swaps)} swaps: {found.words()}", flush=True)
        return found

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begun

    def note(self, **row: Any) -> None:
        self._rows.append(row)
        said = ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print(f"[{self.seconds:5.1f}] {said}", flush=True)
        pd.DataFrame(self._rows).to_csv(self._out, index=False)

    def differences(self, ours: np.ndarray, theirs: np.ndarray) -> dict[str, str]:
        kl, delta = (interval(ours[:, i], theirs[:, i], self._judge.weights) for i in (0, 1))
        return {"kl": kl, "delta_nll": delta}

    def measured(self, chain: str, what: str, chosen: np.ndarray) -> None:
        """By a chain, or else put together from the candidates as they are."""
        if chain in CHAINS:
            recipe, widths = self._known[chain], {}
            if (chosen == chosen[0]).all():  # one width for all is the recipe itself
                recipe = recipe | dict(zip(("bits", "group_size"), GRIDS[chosen[0]], strict=True))
            else:
                widths = {each: GRIDS[k] for each, k in zip(self.mixer.names, chosen, strict=True)}
            seconds, record, size_mb, model = self.mixer.whole(recipe, widths)
            more = {"size_mb": size_mb, "seconds": seconds, "bits": record["summary"]["bits_per_weight"]}
        else:
            model, more = self.mixer.load(chosen), {"bits": self.mixer.bits(chosen)}
        self.judged(chain, what, model, predicted=float(self.fitted.of(chosen).sum()), **more)
        if not what.startswith(MIX):
            return
        counts = {label_of(grid): int((chosen == k).sum()) for k, grid in enumerate(GRIDS)}
        self.note(
            chain=chain, what=what, linears="; ".join(f"{count} of {each}" for each, count in counts.items() if count)
        )

    def judged(self, chain: str, what: str, model: nn.Module, **more: Any) -> None:
        """Its own KL, each mix of the chain beside each other, and the line between one width and the next."""
        found = self.sums[f"{chain}-{what}"] = self._judge.sums(model)
        beside = self._sized.setdefault(chain, {})
        beside[what] = more["bits"], float(found[:, 0].sum() / self._judge.weights.sum())
        self.note(chain=chain, what=what, **more, **self.differences(found, np.zeros_like(found)))
        pairs = [(mix, one) for mix in beside for one in beside if mix.startswith(MIX) and not one.startswith(MIX)]
        for mix, one in (pair for pair in pairs if what in pair):
            told = f"{mix} minus {one} ({beside[one][0]:.3f})"
            self.note(
                chain=chain, what=told, **self.differences(self.sums[f"{chain}-{mix}"], self.sums[f"{chain}-{one}"])
            )
        ends = [beside[label_of(each)] for each in (LOW, HIGH) if label_of(each) in beside]
        for mix in dict.fromkeys(mix for mix, _ in pairs) if len(ends) == 2 else ():
            bits, kl = beside[mix]
            self.note(chain=chain, what=mix, share_of_line=kl / on_the_line(bits, ends))
        np.savez(self._out.with_suffix(".npz"), weights=self._judge.weights, **self.sums)


def counted(mixer: Mixer) -> np.ndarray:
    """Bits of each linear's candidates as AutoRound counts them: codes, and of each group a step of 16 bits and a zero
    of as many as a code has."""
    shapes = [mixer.weights[-1][name].shape for name in mixer.names]
    of = [[n_out * (n_in * bits + -(-n_in // size) * (16 + bits)) for bits, size in GRIDS] for n_out, n_in in shapes]
    return np.array(of, dtype=np.int64)


def within(trial: Trial, chosen: np.ndarray, usable: list[int]) -> np.ndarray:
    """The best mix of some candidates that takes no more than a choice, as stored and as AutoRound counts."""
    mixer = trial.mixer
    sizes = np.stack([mixer.sizes[:, :-1], counted(mixer)])
    costs = trial.fitted.costs[:, usable]
    of_groups = np.stack([costs[group].sum(0) for group in mixer.groups])
    sums = np.stack([sizes[:, group][:, :, usable].sum(1) for group in mixer.groups], axis=1)
    most, found = sizes[:, np.arange(len(chosen)), chosen].sum(1), np.empty_like(chosen)
    for group, k in zip(mixer.groups, allocate(of_groups, sums, most), strict=True):
        found[group] = usable[k]
    return found


def beside_another(trial: Trial, path: Path) -> None:
    """A choice of autoscheme.py and ours of no more bits, put together from the same candidates."""
    mixer, widths = trial.mixer, json.loads(path.read_text())["widths"]
    at = {grid: k for k, grid in enumerate(GRIDS)}
    theirs = np.array([at[widths[name]["bits"], widths[name]["group_size"]] for name in mixer.names])
    alike = [k for k, (_, group_size) in enumerate(GRIDS) if group_size == LOW[1]]
    choices = {"AutoScheme": theirs, f"{MIX} of its options": within(trial, theirs, alike)}
    choices[f"{MIX} of all candidates"] = within(trial, theirs, list(range(len(GRIDS))))
    for what, chosen in choices.items():
        nominal = counted(mixer)[np.arange(len(chosen)), chosen].sum() / mixer.numbers
        trial.note(what=what, as_the_library_counts=float(nominal))
        trial.measured("parallel", what, chosen)


def among_budgets(trial: Trial, options: argparse.Namespace) -> None:
    """A mix for each budget, each width for all, and both by the chains."""
    mixer = trial.mixer
    middle = (mixer.bits(trial.single[LOW]) + mixer.bits(trial.single[HIGH])) / 2
    choices, budgets = {label_of(grid): each for grid, each in trial.single.items()}, options.bits
    for bits in [bits or middle for bits in budgets]:
        choices[f"{MIX} within {bits:.3f}"] = mixer.best(bits, as_codes(trial.fitted.costs))
        if not options.only_chains:
            uncorrected = mixer.best(bits, as_codes(mixer.costs))
            trial.measured("parallel", f"{MIX} within {bits:.3f}, uncorrected", uncorrected)
    for what, chosen in () if options.only_chains else choices.items():
        trial.measured("parallel", what, chosen)
    first, *others = (what for what in choices if what.startswith(MIX))
    order = [(c, what) for c in options.chains for what in (first, label_of(LOW), label_of(HIGH), *others)]
    for chain, what in [*order, *((chain, label_of((3, 32))) for chain in options.chains)]:
        trial.measured(chain, what, choices[what])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("converted", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--chains", nargs="*", choices=CHAINS, default=CHAINS)
    parser.add_argument("--calibration", type=int, default=CALIBRATION[0], help="sequences of 512 tokens")
    parser.add_argument("--limit", type=int, default=None, help="windows that are measured on")
    parser.add_argument("--bits", type=float, nargs="+", default=[0.0, 3.5], help="stored; 0: halfway between 3 and 4")
    parser.add_argument("--only-chains", action="store_true", help="nothing put together from candidates")
    parser.add_argument("--widths", type=Path, help="of autoscheme.py, which mixes of its size are measured beside")
    parser.add_argument("--out", type=Path, default=Path("mixes.csv"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        given = options.converted, options.text, options.calibration, options.limit
        trial = Trial(*given, Path(name), options.out)
        if options.widths is None:
            among_budgets(trial, options)
        else:
            beside_another(trial, options.widths)


if __name__ == "__main__":
    main()
