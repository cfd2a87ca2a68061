"""The formulas of docs/methods.md in float64 with plain loops: slow, obvious, and independent of the library."""

import math
from collections.abc import Callable

import numpy as np

Matrix = np.ndarray  # [rows, columns], float64


def group_bounds(n_in: int, group_size: int) -> list[tuple[int, int]]:
    """Start and stop of each group of inputs; the last may be shorter."""
    if group_size == -1:
        return [(0, n_in)]
    return [(start, min(start + group_size, n_in)) for start in range(0, n_in, group_size)]


def round_group(values: list[float], bits: int, symmetric: bool, factor: float = 1.0) -> tuple[list[int], float, int]:
    """Codes, step and zero of one range, shrunk by factor. Python's round() goes to even on a tie, as torch.round."""
    shrunk = [v * factor for v in values]
    if symmetric:
        step, zero = max(abs(v) for v in shrunk) / (2 ** (bits - 1) - 1), 0
        lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    else:
        low, high = min([0.0, *shrunk]), max([0.0, *shrunk])
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


CLIP_FACTORS = [1 - 0.05 * i for i in range(13)]


def clipped(w: Matrix, importance: Matrix, bits: int, group_size: int, symmetric: bool) -> tuple[Matrix, Matrix]:
    """w [out, in] on its own grid, each range shrunk by the factor with the least Σⱼ importance_j (w_j - ŵ_j)²; and the
    factors [out, n_groups]. The larger factor on a tie."""
    out, bounds = np.zeros(w.shape), group_bounds(w.shape[1], group_size)
    factors = np.zeros((len(w), len(bounds)))
    for k, row in enumerate(w.tolist()):
        for g, (start, stop) in enumerate(bounds):
            least = math.inf
            for factor in CLIP_FACTORS:
                codes, step, zero = round_group(row[start:stop], bits, symmetric, factor)
                points = [(code - zero) * step for code in codes]
                weighted = zip(importance[start:stop], row[start:stop], points, strict=True)
                error = sum(float(h) * (v - point) ** 2 for h, v, point in weighted)
                if error < least:
                    least, factors[k, g], out[k, start:stop] = error, factor, points
    return out, factors


def by_column(w: Matrix, bits: int, group_size: int, symmetric: bool) -> tuple[Matrix, Matrix, Matrix]:
    """Nearest codes, steps and zeros of the full range, each [out, in]."""
    codes, steps, zeros = (np.zeros(w.shape) for _ in range(3))
    for k, row in enumerate(w.tolist()):
        for start, stop in group_bounds(len(row), group_size):
            codes[k, start:stop], steps[k, start:stop], zeros[k, start:stop] = round_group(
                row[start:stop], bits, symmetric
            )
    return codes, steps, zeros


def gptq(
    w: Matrix, moment: Matrix, bits: int, group_size: int, symmetric: bool, damp: float, by_error: bool = False
) -> Matrix:
    """Codes [out, in] of the textbook's column loop: the inverse of the damped H is at hand, each rounded column's
    error goes to those not yet rounded, and the column leaves the inverse. Groups' ranges are those of w. Columns go by
    descending H_jj (activation order), or, by_error, by descending H_jj·mean_k step²_kj."""
    n_in = w.shape[1]
    _, steps, zeros = by_column(w, bits, group_size, symmetric)
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    inverse = np.linalg.inv(moment + damp * moment.diagonal().mean() * np.eye(n_in))
    work, codes = w.copy(), np.zeros(w.shape)
    weight = [sum(float(s) ** 2 for s in steps[:, j]) / len(w) if by_error else 1.0 for j in range(n_in)]
    left = sorted(range(n_in), key=lambda j: -moment[j, j] * weight[j])
    while left:
        j = left.pop(0)
        for k in range(len(w)):
            codes[k, j] = min(max(round(work[k, j] / steps[k, j]) + zeros[k, j], lowest), highest)
        error = (work[:, j] - (codes[:, j] - zeros[:, j]) * steps[:, j]) / inverse[j, j]
        work[:, left] -= np.outer(error, inverse[j, left])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


def greedy_flip(
    w: Matrix, mean: Matrix, bits: int, group_size: int, symmetric: bool, outlier_percent: float
) -> tuple[Matrix, list[list[int]], list[int]]:
    """Codes [out, in]; each row's candidates in the order in which they may flip; how many do, by trying every K."""
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    n_in = w.shape[1]
    outliers = sorted(range(n_in), key=lambda j: -abs(mean[j]))[: int(outlier_percent * n_in)]
    codes, steps, zeros = by_column(w, bits, group_size, symmetric)
    orders, counts = [], []
    for k in range(len(w)):
        rest = [float(w[k, j] - (codes[k, j] - zeros[k, j]) * steps[k, j]) for j in range(n_in)]
        error = sum(float(mean[j]) * rest[j] for j in range(n_in))
        sign = [1 if r >= 0 else -1 for r in rest]  # towards the second-nearest point
        change = [float(mean[j] * steps[k, j]) * sign[j] for j in range(n_in)]
        candidates = [
            j
            for j in range(n_in)
            if j not in outliers and lowest <= codes[k, j] + sign[j] <= highest and change[j] * error > 0
        ]
        candidates.sort(key=lambda j: -abs(rest[j] / steps[k, j]))
        left = [abs(error - sum(change[j] for j in candidates[:count])) for count in range(len(candidates) + 1)]
        count = left.index(min(left))
        for j in candidates[:count]:
            codes[k, j] += sign[j]
        orders.append(candidates)
        counts.append(count)
    return codes, orders, counts


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


def scaled_rounded(
    w: Matrix,
    salience: Matrix,
    alpha: float,
    bits: int,
    group_size: int,
    symmetric: bool,
    square: Matrix | None = None,
) -> Matrix:
    """Q(W·diag(s))·diag(1/s), clipped where E[x²] is given; x/s is what the scaled weight acts on."""
    s = scale_for(salience, alpha)
    if square is None:
        return rounded(w * s, bits, group_size, symmetric) / s
    return clipped(w * s, square / s**2, bits, group_size, symmetric)[0] / s


def search(
    w: Matrix,
    x: Matrix,
    salience: Matrix,
    bits: int,
    group_size: int,
    symmetric: bool,
    n_grid: int,
    row_weight: Matrix | None = None,
    clip: bool = False,
) -> tuple[float, float, list[float]]:
    """The best α (the smaller on a tie), its objective, and every α's objective, through x and not through H."""
    weight = np.ones(len(w)) if row_weight is None else row_weight
    square = np.array(input_statistics(x)["x_sq"]) if clip else None
    objectives = []
    for step in range(n_grid + 1):
        candidate = scaled_rounded(w, salience, step / n_grid, bits, group_size, symmetric, square)
        objectives.append(float((row_errors(w - candidate, x) * weight).sum()) / len(w))
    best = 0
    for step, objective in enumerate(objectives):
        if objective < objectives[best]:
            best = step
    return best / n_grid, objectives[best], objectives


def noisy_error(
    w: Matrix, candidate: Matrix, x: Matrix, sigma: float, draws: int, row_weight: Matrix | None = None
) -> tuple[float, float]:
    """Σ_k weight_k E (w_k·x - ŵ_k·(x+ε))² / out by drawing ε ~ N(0, σ²), and its standard error."""
    rng, found = np.random.default_rng(0), []
    weight = np.ones(len(w)) if row_weight is None else row_weight
    for _ in range(draws):
        off = x @ w.T - (x + sigma * rng.normal(size=x.shape)) @ candidate.T
        found.append(float((off**2).mean(0) @ weight) / len(w))
    return float(np.mean(found)), float(np.std(found) / math.sqrt(draws))


def silu(z: float) -> float:
    return z / (1 + math.exp(-z))


def gelu(z: float) -> float:
    return z * (1 + math.erf(z / math.sqrt(2))) / 2


def gelu_tanh(z: float) -> float:
    return z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2


def relu(z: float) -> float:
    return max(z, 0.0)


def mlp(z: Matrix, u: Matrix | None, down: Matrix, activation: Callable[[float], float]) -> Matrix:
    """down(act(z)·u), or down(act(z)) where u is None, of one token."""
    hidden = np.array([activation(value) for value in z.tolist()])
    return down @ (hidden if u is None else hidden * u)


def jacobian(z: Matrix, u: Matrix | None, down: Matrix, activation: Callable[[float], float]) -> dict[str, Matrix]:
    """‖∂ mlp/∂z_k‖² and ‖∂ mlp/∂u_k‖² of one token by finite differences: gate and up, or up alone in a plain MLP."""
    h, n = 1e-5, len(z)

    def squared(plus: Matrix, minus: Matrix) -> float:
        return float((((plus - minus) / (2 * h)) ** 2).sum())

    steps = h * np.eye(n)
    by_z = [squared(mlp(z + d, u, down, activation), mlp(z - d, u, down, activation)) for d in steps]
    if u is None:
        return {"up": np.array(by_z)}
    by_u = [squared(mlp(z, u + d, down, activation), mlp(z, u - d, down, activation)) for d in steps]
    return {"gate": np.array(by_z), "up": np.array(by_u)}


def weighted_moment(x: Matrix, omega: list[float]) -> Matrix:
    """Σ ω x xᵀ / Σ ω, one outer product at a time."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for one, weight in zip(x, omega, strict=True):
        total += weight * np.outer(one, one)
    return total / sum(omega)


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


def refined(
    w: Matrix, codes: Matrix, steps: Matrix, zeros: Matrix, bits: int, group_size: int, symmetric: bool, moment: Matrix
) -> tuple[Matrix, Matrix]:
    """One round: each code in turn, by falling H_jj, to where its row's error is least with all others as they are, by
    trying every code; then each row's steps [out, n_groups] by least squares. codes, steps and zeros [out, in]."""
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    h = moment + 1e-4 * moment.diagonal().mean() * np.eye(len(moment))
    codes, bounds = codes.copy(), group_bounds(w.shape[1], group_size)
    root = np.linalg.cholesky(h).T  # ‖root·d‖² = d H dᵀ
    new = np.zeros((len(w), len(bounds)))
    for k in range(len(w)):
        for j in sorted(range(len(h)), key=lambda j: -h[j, j]):
            errors = []
            for code in range(lowest, highest + 1):
                tried = codes[k].copy()
                tried[j] = code
                errors.append(float(((root @ (w[k] - (tried - zeros[k]) * steps[k])) ** 2).sum()))
            codes[k, j] = lowest + errors.index(min(errors))
        columns = np.zeros((len(h), len(bounds)))
        for g, (start, stop) in enumerate(bounds):
            columns[start:stop, g] = codes[k, start:stop] - zeros[k, start:stop]
        new[k] = np.linalg.lstsq(root @ columns, root @ w[k], rcond=None)[0]
    return codes, new


def corrected(w: Matrix, x: Matrix, quantised: Matrix, share: float) -> Matrix:
    """w plus a share of the change that makes up for its outputs on x [n, in] when it reads the quantised model's
    inputs [n, in], by ridge regression."""
    damp = 0.01 * second_moment(quantised).diagonal().mean() * len(x)
    wide = np.concatenate([quantised, math.sqrt(damp) * np.eye(w.shape[1])])
    missing = np.concatenate([(x - quantised) @ w.T, np.zeros((w.shape[1], len(w)))])
    return w + share * np.linalg.lstsq(wide, missing, rcond=None)[0].T


def case(n_out: int, n_in: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """w [out, in] and the second moment of correlated inputs with loud channels, of full rank."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2 * n_in + 10, n_in)) @ (np.eye(n_in) + 2 * rng.normal(size=(n_in, n_in)) / np.sqrt(n_in))
    x = x * np.exp(0.7 * rng.normal(size=n_in)) + rng.normal(size=n_in)
    return rng.normal(size=(n_out, n_in)), x.T @ x / len(x)
