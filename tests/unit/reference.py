"""The formulas of METHODS.md in float64 with plain loops: slow, obvious, and independent of the library."""

import math

import numpy as np

Matrix = np.ndarray  # [rows, columns], float64


def group_bounds(n_in: int, group_size: int) -> list[tuple[int, int]]:
    """Start and stop of each group of inputs; the last may be shorter."""
    if group_size == -1:
        return [(0, n_in)]
    return [(start, min(start + group_size, n_in)) for start in range(0, n_in, group_size)]


def round_group(values: list[float], bits: int, symmetric: bool) -> tuple[list[int], float, int]:
    """Codes, step and zero of one range. Python's round() goes to even on a tie, as torch.round does."""
    if symmetric:
        step, zero = max(abs(v) for v in values) / (2 ** (bits - 1) - 1), 0
        lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    else:
        low, high = min([0.0, *values]), max([0.0, *values])
        lowest, highest = 0, 2**bits - 1
        step = (high - low) / highest
        zero = min(max(round(-low / step), lowest), highest) if step > 0 else 0
    if step == 0:  # a range of zeros
        return [0] * len(values), 1.0, 0
    return [min(max(round(v / step) + zero, lowest), highest) for v in values], step, zero


def rounded(w: Matrix, bits: int, group_size: int, symmetric: bool) -> Matrix:
    """w [out, in] on its own grid."""
    out = np.zeros(w.shape)
    for k, row in enumerate(w.tolist()):
        for start, stop in group_bounds(len(row), group_size):
            codes, step, zero = round_group(row[start:stop], bits, symmetric)
            out[k, start:stop] = [(code - zero) * step for code in codes]
    return out


def row_errors(difference: Matrix, x: Matrix) -> Matrix:
    """E (d_k·x)² of each row k of the difference [out, in], over inputs x [n, in], one input at a time."""
    total = np.zeros(len(difference))
    for one in x:
        total += (difference @ one) ** 2
    return total / len(x)


def second_moment(x: Matrix) -> Matrix:
    """XᵀX/N, one outer product at a time."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for one in x:
        total += np.outer(one, one)
    return total / len(x)


def scale_for(salience: Matrix, alpha: float) -> Matrix:
    return np.array([max(s**alpha, 1e-5) for s in salience.tolist()])


def scaled_rounded(w: Matrix, salience: Matrix, alpha: float, bits: int, group_size: int, symmetric: bool) -> Matrix:
    """Q(W·diag(s))·diag(1/s)."""
    s = scale_for(salience, alpha)
    return rounded(w * s, bits, group_size, symmetric) / s


def search(
    w: Matrix,
    x: Matrix,
    salience: Matrix,
    bits: int,
    group_size: int,
    symmetric: bool,
    n_grid: int,
    row_weight: Matrix | None = None,
) -> tuple[float, float, list[float]]:
    """The best α (the smaller on a tie), its objective, and every α's objective, through x and not through H."""
    weight = np.ones(len(w)) if row_weight is None else row_weight
    objectives = []
    for step in range(n_grid + 1):
        candidate = scaled_rounded(w, salience, step / n_grid, bits, group_size, symmetric)
        objectives.append(float((row_errors(w - candidate, x) * weight).sum()) / len(w))
    best = 0
    for step, objective in enumerate(objectives):
        if objective < objectives[best]:
            best = step
    return best / n_grid, objectives[best], objectives


def silu(z: float) -> float:
    return z / (1 + math.exp(-z))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def input_statistics(x: Matrix) -> dict[str, list[float]]:
    """x_abs E|x|, x_sq E[x²], x_mean E[x] per channel of x [n, in]."""
    found: dict[str, list[float]] = {"x_abs": [], "x_sq": [], "x_mean": []}
    for values in x.T.tolist():
        found["x_abs"].append(sum(abs(v) for v in values) / len(values))
        found["x_sq"].append(sum(v * v for v in values) / len(values))
        found["x_mean"].append(sum(values) / len(values))
    return found


def output_statistics(z: Matrix) -> dict[str, list[float]]:
    """z_mean, z_std (of the population), z_abs and act_abs E|SiLU(z)| per channel of z [n, out]."""
    found: dict[str, list[float]] = {"z_mean": [], "z_std": [], "z_abs": [], "act_abs": []}
    for values in z.T.tolist():
        mean = sum(values) / len(values)
        found["z_mean"].append(mean)
        found["z_std"].append(math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)))
        found["z_abs"].append(sum(abs(v) for v in values) / len(values))
        found["act_abs"].append(sum(abs(silu(v)) for v in values) / len(values))
    return found


def praq_salience(w: Matrix, act_abs: list[float], x_abs: list[float], is_mlp: bool) -> list[float]:
    """Σ_k E|SiLU(z_k)|·|W_kj| or E|x_j|, mapped to [0.1, 10]."""
    n_out, n_in = w.shape
    raw = [sum(act_abs[k] * abs(w[k, j]) for k in range(n_out)) for j in range(n_in)] if is_mlp else list(x_abs)
    low, high = min(raw), max(raw)
    return [0.1 + (10 - 0.1) * (value - low) / (high - low) for value in raw]


def praq_score(
    w: Matrix, x: Matrix, z: dict[str, list[float]], beta: float, tau: float, noise_factor: float
) -> list[float]:
    """Fast-R-PRAQ v3 before its sums over blocks of rows; z as output_statistics gives it."""
    mean_x = sum(abs(v) for row in x.tolist() for v in row) / x.size
    scores = []
    for k, row in enumerate(w.tolist()):
        noise = mean_x * sum(abs(v) for v in row) / len(row) * noise_factor
        upper = z["z_mean"][k] + 3 * z["z_std"][k]
        scores.append(sigmoid(beta * (upper + noise - tau)) * (z["z_abs"][k] + z["z_std"][k]))
    return scores


def sum_blocks(score: list[float], rows: int = 32) -> list[float]:
    """The sum over each block of rows, given to each of them, where the number of rows allows."""
    if len(score) % rows:
        return list(score)
    return [sum(score[k // rows * rows : k // rows * rows + rows]) for k in range(len(score))]


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = math.log(sum(math.exp(v - top) for v in logits)) + top
    return [v - total for v in logits]


def nll(logits: Matrix, targets: list[int]) -> list[float]:
    """-log p(target) of each row of logits [n, vocab]."""
    return [-log_softmax(row)[target] for row, target in zip(logits.tolist(), targets, strict=True)]


def kl(p_logits: Matrix, q_logits: Matrix) -> list[float]:
    """Σ p (log p - log q) of each row."""
    found = []
    for p_row, q_row in zip(p_logits.tolist(), q_logits.tolist(), strict=True):
        log_p, log_q = log_softmax(p_row), log_softmax(q_row)
        found.append(sum(math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True)))
    return found


def perplexity(nlls: list[float]) -> float:
    return math.exp(sum(nlls) / len(nlls))
