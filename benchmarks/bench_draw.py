"""The figure of a benchmark (bench.py)."""

from pathlib import Path

import pandas as pd


def draw(table: pd.DataFrame, path: Path, title: str) -> None:
    """Each step beside its limit; cost against depth, width, tokens and methods."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 5, figsize=(18, 4), layout="constrained", width_ratios=[3, 1, 1, 1, 1])
    whole = table[~table["step"].str.contains(" by ") & table["limit_s"].notna()]
    labels = (whole["step"] + " " + whole["recipe"].fillna("")).str.strip()
    for key, height, label in (("seconds", 0.8, "wall clock"), ("gpu_s", 0.5, "GPU busy"), ("limit_s", 0.25, "limit")):
        if whole[key].notna().any():
            axes[0].barh(labels, whole[key].astype(float), height=height, label=label)
    axes[0].set(xscale="log", xlabel="seconds", title=title)
    axes[0].invert_yaxis()
    axes[0].legend()
    for axis, key in zip(axes[1:4], ("depth", "width", "tokens"), strict=True):
        for step in ("statistics", "search"):
            part = table[table["step"] == f"{step} by {key}"]
            if key == "depth":
                part = pd.concat(
                    [part, table[(table["step"] == step) & (table["recipe"].isin(["gw_awq"]) | (step == "statistics"))]]
                )
            if len(part) > 1:
                axis.plot(part[key], part["seconds"], "o-", label=step)
        if not axis.lines:  # without growth
            axis.remove()
            continue
        axis.legend()
        axis.set(xlabel=key, ylabel="seconds", xlim=(0, None), ylim=(0, None))
    methods = table[table["step"] == "search"].dropna(subset="recipe")
    cost = table[table["step"] == "statistics"]["seconds"].iloc[0] + methods["call_s"].cumsum()
    axes[4].plot(range(1, len(cost) + 1), cost, "o-")
    axes[4].set(xlabel="methods, statistics included", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    figure.savefig(path)
