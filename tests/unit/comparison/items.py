"""Questions answered as tasks have it."""

from typing import Any

import numpy as np

ITEMS = 300


def answers(method: str, right: np.ndarray, log_p: np.ndarray, task: str = "t", **made: Any) -> dict[str, Any]:
    """As evaluate_task writes them."""
    rows = [
        {"log_p": [x, 0.0], "gold": 0, "answer": int(not hit), "right": bool(hit), "right_log_p": float(x)}
        for hit, x in zip(right, log_p, strict=True)
    ]
    provenance = {"versions": {"python": "3"}, "task_fingerprint": "f", "recipe": {"bits": 4}, "seed": 42} | made
    names = {"model": "m", "method": method, "task": task, "score": "acc", "rule": "a rule", "chance": 0.25}
    return names | {"seconds": 1.0, "items": rows, "provenance": provenance}


def likelihoods(rng: np.random.Generator, effects: np.ndarray, n: int = ITEMS) -> np.ndarray:
    """log p of the right answers [methods, n]: an item's difficulty is common, each method moves it by its effect and
    by noise of its own, skewed as likelihoods of rare words are. The right answer is given where it is above -1."""
    shape = (len(effects), n)
    noise = rng.normal(0, 0.25, shape) - (rng.gamma(0.5, 0.4, shape) - 0.2)
    return rng.normal(-1.2, 1.5, n) - effects[:, None] + noise
