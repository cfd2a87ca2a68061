"""Budgets beside one width, by the frontier's chain, on WikiText-2 test: mixes.py CONVERTED TEXT [--bits 3.916 3.5].

CONVERTED and TEXT as frontier.py takes them, calibrated on the same 128×512 tokens. Candidates are some widths and
group sizes of a recipe that rounds each linear alone; widths are chosen by their predicted damage, corrected by swaps
on the calibration text, and the model is quantised with them by `frontier_fast` and by `frontier_3bit` (reconstructed
and tuned), each width for all likewise (docs/methods.md, Budgets). Prints what a mix's KL is of the straight line
between 3 and 4 bits, and its difference from each width; writes rows to OUT, each window's sums beside it. Needs a GPU
to be quick.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from budget import SECTIONS, Judge, Mixer, interval
from frontier import CALIBRATION, texts

from quant.comparison.mixing import on_the_line
from quant.methods.swaps import corrected, parts_of
from quant.models.compute import device
from study import methods

GRIDS = [(2, 64), (3, 192), (3, 64), (3, 32), (4, 192), (4, 64), (8, 64)]  # 192 divides 576 and 1,536
LOW, HIGH = (3, 64), (4, 64)  # of the line
CHAINS = ("frontier_fast", "frontier_3bit")
MIX = "mix"
SWAP_SEQUENCES = 8  # of the calibration text


def label_of(grid: tuple[int, int]) -> str:
    return "{} bits in groups of {}".format(*grid)


def known_costs(costs: np.ndarray) -> np.ndarray:
    """Without a linear as it is, which the chains do not leave."""
    return np.concatenate([costs[:, :-1], np.full((len(costs), 1), np.nan)], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("converted", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--bits", type=float, nargs="+", default=[0.0, 3.5], help="stored; 0: halfway between 3 and 4")
    parser.add_argument("--chains", nargs="*", choices=CHAINS, default=CHAINS)
    parser.add_argument("--calibration", type=int, default=CALIBRATION[0], help="sequences of 512 tokens")
    parser.add_argument("--limit", type=int, default=None, help="windows that are measured on")
    parser.add_argument("--out", type=Path, default=Path("mixes.csv"))
    options = parser.parse_args()
    begun, where, known = time.perf_counter(), device("auto"), methods()
    torch.backends.cuda.matmul.allow_tf32 = False
    sequences, judged = texts(options.converted / "checkpoint", options.text, options.calibration)
    recipe = known["awq_clip_gptq_shared"] | {"search_bits": 4, "search_group_size": 64, "refine": 3}
    rows: list[dict[str, Any]] = []
    sums: dict[str, np.ndarray] = {}

    def note(**row: Any) -> None:
        rows.append(row)
        said = ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print(f"[{time.perf_counter() - begun:5.1f}] {said}", flush=True)
        pd.DataFrame(rows).to_csv(options.out, index=False)

    with tempfile.TemporaryDirectory() as name:
        mixer = Mixer(options.converted, sequences, Path(name), where, recipe, GRIDS)
        mixer.load({})
        windows = judged["wikitext"][: options.limit]
        judge, own = Judge(mixer.model, windows, where), Judge(mixer.model, sequences[:SWAP_SEQUENCES], where)
        parts = parts_of(mixer.record["linears"], SECTIONS)
        at = {part: [mixer.names.index(each) for each in linears] for part, linears in parts.items()}
        columns = range(len(GRIDS))
        swaps = {(part, k): own.kl(mixer.load(dict.fromkeys(at[part], k))) for part in parts for k in columns}
        uniform = {k: own.kl(mixer.load(np.full(len(mixer.names), k))) for k in columns}
        fitted = corrected(mixer.costs, mixer.names, parts, swaps, uniform)
        print(f"[{time.perf_counter() - begun:5.1f}] {len(swaps)} swaps: {fitted.words()}", flush=True)
        single = {grid: np.full(len(mixer.names), k) for k, grid in enumerate(GRIDS)}
        middle = (mixer.bits(single[LOW]) + mixer.bits(single[HIGH])) / 2
        budgets = [bits or middle for bits in options.bits]

        sized: dict[str, dict[str, tuple[float, float]]] = {}  # by chain: bits and KL

        def measured(chain: str, what: str, chosen: np.ndarray) -> None:
            if chain in CHAINS:
                widths = {each: GRIDS[k] for each, k in zip(mixer.names, chosen, strict=True)}
                bits, group_size = GRIDS[chosen[0]]  # one width for all is the recipe itself
                own_way = (known[chain] | {"bits": bits, "group_size": group_size},)
                own_way = own_way if (chosen == chosen[0]).all() else (known[chain], widths)
                seconds, record, size_mb, model = mixer.whole(*own_way)
                more = {"size_mb": size_mb, "seconds": seconds, "bits": record["summary"]["bits_per_weight"]}
            else:
                model, more = mixer.load(chosen), {"bits": mixer.bits(chosen)}
            found = sums[f"{chain}-{what}"] = judge.sums(model)
            beside = sized.setdefault(chain, {})
            beside[what] = more["bits"], float(found[:, 0].sum() / judge.weights.sum())
            note(
                chain=chain,
                what=what,
                **more,
                **differences(found, np.zeros_like(found)),
                predicted=float(fitted.of(chosen).sum()),
            )
            if what.startswith(MIX):
                counts = {label_of(grid): int((chosen == k).sum()) for k, grid in enumerate(GRIDS)}
                said = "; ".join(f"{count} of {each}" for each, count in counts.items() if count)
                note(chain=chain, what=what, linears=said)
            pairs = [(mix, one) for mix in beside for one in beside if mix.startswith(MIX) and not one.startswith(MIX)]
            for mix, one in (pair for pair in pairs if what in pair):
                told = f"{mix} minus {one} ({beside[one][0]:.3f})"
                note(chain=chain, what=told, **differences(sums[f"{chain}-{mix}"], sums[f"{chain}-{one}"]))
            ends = [beside[label_of(each)] for each in (LOW, HIGH) if label_of(each) in beside]
            for mix in {mix for mix, _ in pairs} if len(ends) == 2 else ():
                bits, kl = beside[mix]
                note(chain=chain, what=mix, share_of_line=kl / on_the_line(bits, ends))
            np.savez(options.out.with_suffix(".npz"), weights=judge.weights, **sums)

        def differences(ours: np.ndarray, theirs: np.ndarray) -> dict[str, str]:
            kl, delta = (interval(ours[:, i], theirs[:, i], judge.weights) for i in (0, 1))
            return {"kl": kl, "delta_nll": delta}

        choices = {label_of(grid): each for grid, each in single.items()}
        choices |= {f"{MIX} within {bits:.3f}": mixer.best(bits, known_costs(fitted.costs)) for bits in budgets}
        for bits in budgets:
            measured("parallel", f"{MIX} within {bits:.3f}, uncorrected", mixer.best(bits, known_costs(mixer.costs)))
        for what, chosen in choices.items():
            measured("parallel", what, chosen)
        first, *others = (what for what in choices if what.startswith(MIX))
        ends = [label_of(LOW), label_of(HIGH)]
        order = [(chain, what) for chain in options.chains for what in (first, *ends, *others)]
        for chain, what in [*order, *((chain, label_of((3, 32))) for chain in options.chains)]:
            measured(chain, what, choices[what])


if __name__ == "__main__":
    main()
