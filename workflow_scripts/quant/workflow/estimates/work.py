"""What quantising works through, stage by stage: products, what other kernels read and write, and operations that
Python starts one by one. Pure, and without torch.

Constants are of kernels on a GPU, as their seconds were measured on several shapes (docs/results.md).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from quant.workflow.estimates.amounts import Ask, forward, head, n_batches, n_linears, outer, products
from quant.workflow.estimates.shape import Shape

COLUMNS = 128  # that GPTQ and refinement round at once (recipe.kernels)
# bytes of a weight, or of a candidate for it
LOADED, CANDIDATE, CLIPPED = 500.0, 13.0, 34.0
# operations of a linear: reading, rounding and writing it; its scale; each COLUMNS of its inputs; a round of refinement
PLAIN, SCALE, COLUMN, ROUND = 210.0, 50.0, 16.0, 60.0
RECONSTRUCTED, TUNED, LOGITS = 1.6, 3.0, 4.2  # times a pass's products where weights and losses are made anew
OF_PASS, OF_STREAM = 95.0, 60.0  # operations of a linear in a pass over one batch, and in one of two models' streams
WIDEST = 2**27  # calibration.streams


class Work(NamedTuple):
    """FLOP by the type of the products; bytes; operations."""

    model: float = 0.0
    float32: float = 0.0
    moved: float = 0.0
    calls: float = 0.0

    def plus(self, other: "Work") -> "Work":
        return Work(*(own + more for own, more in zip(self, other, strict=True)))


def steps_of_columns(shape: Shape) -> float:
    """How many times COLUMNS inputs of a linear are rounded."""
    return shape.depth * sum(each.n * -(-each.n_in // COLUMNS) for each in shape.linears)


def factoring(shape: Shape) -> float:
    """A Cholesky factor's inverse for each linear: n³/3 twice."""
    return shape.depth * sum(each.n * 2 / 3 * each.n_in**3 for each in shape.linears)


def plain(shape: Shape) -> Work:
    """Weights to float32 and to a file, and what their linear's row says of them."""
    return Work(moved=LOADED * shape.quantised, calls=PLAIN * n_linears(shape))


def searching(shape: Shape, recipe: Mapping[str, Any]) -> Work:
    """A triangle of D·H for each α, and ranges shrunk by each factor where they are clipped."""
    if recipe["salience"] == "none":
        return Work(moved=2 * CLIPPED * shape.quantised if recipe["clip"] else 0.0)
    n = recipe["n_grid"] + 1
    candidate = CLIPPED if recipe["clip"] else CANDIDATE
    return Work(n * products(shape), 0.0, n * candidate * shape.quantised, SCALE * n_linears(shape))


def feeding(shape: Shape) -> Work:
    """GPTQ: the inverse's factor, and half of a product with it."""
    return Work(float32=products(shape) + factoring(shape), calls=COLUMN * steps_of_columns(shape))


def refining(shape: Shape, rounds: int) -> Work:
    """W·H; in a round as much of what is left, half of it in the sweep and half of it for the steps."""
    calls = ROUND * n_linears(shape) + COLUMN * steps_of_columns(shape)
    return Work(float32=(2 + 4 * rounds) * products(shape), calls=rounds * calls)


def streaming(ask: Ask, corrects: bool) -> Work:
    """Both models through the blocks, the moments of both, and the correction by them."""
    shape, (_, width) = ask.shape, ask.calibration
    tokens = ask.recipe["n_calib"] * width
    passes = 3 * forward(shape, tokens, width)
    sums = outer(shape, tokens) * (3 if corrects else 1)
    correction = factoring(shape) + 4 * products(shape) if corrects else 0.0
    batches = max(n_batches(ask, tokens, width), -(-tokens * shape.widest * ask.width // WIDEST))
    calls = (3 if corrects else 2) * OF_STREAM * n_linears(shape) * batches
    return Work(passes + sums, correction, 0.0, calls)


def learning(ask: Ask) -> float:
    """FLOP of reconstruction's steps and of tuning's."""
    shape, recipe, (_, width) = ask.shape, ask.recipe, ask.calibration
    tokens, done = recipe["n_calib"] * width, 0.0
    if (own := recipe["reconstruct"]) is not None:
        steps = 3 * own["iterations"] * own["batch"] / recipe["n_calib"] + 3
        done += RECONSTRUCTED * steps * forward(shape, tokens, width)
    if (own := recipe["tune"]) is not None:
        done += (3 * own["epochs"] + 1) * (TUNED * forward(shape, tokens, width) + LOGITS * head(shape, tokens))
    return done


def in_float32(shape: Shape, recipe: Mapping[str, Any]) -> Work:
    """The same on a CPU, where products are all that counts."""
    work = searching(shape, recipe).model + (8.0 * 20 * shape.quantised if recipe["clip"] else 0.0)
    work += feeding(shape).float32 if recipe["rounding"] == "gptq" else 0.0
    calls = PLAIN * n_linears(shape) + searching(shape, recipe).calls
    return Work(float32=work + recipe["refine"] * 2 * products(shape), calls=calls)
