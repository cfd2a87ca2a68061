"""How the cost of bench.py's steps grows with depth, tokens and width."""

from pathlib import Path
from typing import Any, Protocol

from bench_models import Case, make_model, shallower


class Steps(Protocol):
    """What bench.py measures steps with."""

    where: str
    folder: Path

    def statistics(self, model: Path, case: Case, step: str = ...) -> dict[str, Path]: ...

    def quantize(
        self, model: Path, case: Case, name: str, recipe: dict[str, Any], files: dict[str, Path], step: str = ...
    ) -> Path: ...


def growth(bench: Steps, model: Path, case: Case, recipe: dict[str, Any]) -> None:
    """Statistics and one search at other depths, tokens and widths."""
    for depth in sorted({max(1, case.depth // 4), max(1, case.depth // 2)}):
        less, folder = case.having(num_hidden_layers=depth), bench.folder / f"depth{depth}"
        files = bench.statistics(shallower(model, folder, depth), less, "statistics by depth")
        bench.quantize(folder, less, "gw_awq", recipe, files, "search by depth")
    half = case.having(num_hidden_layers=max(1, case.depth // 2))  # in one block alone most is the embedding's copy
    half_model = shallower(model, bench.folder / "half", half.depth)
    n, width = case.calibration
    for times in (0.25, 0.5, 1, 2, 4):
        bench.statistics(half_model, half._replace(calibration=(int(times * n), width)), "statistics by tokens")
    few = case.having(num_hidden_layers=max(1, case.depth // 10))
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    for part in (4, 2, 1):
        narrow = few.having(vocab_size=2048, **{key: max(1, case.config[key] // part) for key in sizes})
        folder = make_model(bench.folder / f"width{part}", narrow, bench.where)
        files = bench.statistics(folder, narrow, "statistics by width")
        bench.quantize(folder, narrow, "gw_awq", recipe, files, "search by width")
