"""What a verdict may rest on: the NLL or the divergence from the original, and the columns that hold each."""

from typing import NamedTuple


class Measure(NamedTuple):
    """words: its name on the page. Columns: own, of a method in summary.csv; rise, the same over the original's;
    difference, of two methods in comparisons.csv, whose other columns end in `suffix`; sequences that it rests on."""

    words: str
    own: str
    rise: str
    difference: str
    suffix: str
    sequences: str


MEASURES = {
    "nll": Measure("NLL", "nll", "delta_nll", "delta_nll", "", "sequences"),
    # the original's own is 0
    "kl": Measure("KL", "kl", "kl", "delta_kl", "_kl", "kl_sequences"),
}


def other(by: str) -> str:
    """The measure that a verdict does not rest on."""
    return "kl" if by == "nll" else "nll"


PREDICTED = "predicted nats"  # of a method: what the end loss says that its linears' changes cost, in sum
