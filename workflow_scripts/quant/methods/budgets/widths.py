"""The widths that a budget gave a recipe which runs the model, as choose_widths wrote them."""

from typing import Any, NamedTuple, TypedDict

from quant.files.artifacts import read_json, require
from quant.recipe.recipe import Widths
from quant.records.method import MethodRecord


class Whole(TypedDict, total=False):
    """What is said of the whole model, as MethodRecord has it."""

    predicted_nats: float
    swaps: str


class GivenWidths(NamedTuple):
    """A row for each linear by its name, and what is said of all; both empty without a budget."""

    rows: dict[str, dict[str, Any]]
    whole: Whole

    @classmethod
    def read(cls, path: str | None, **made_from: Any) -> "GivenWidths":
        """Refused where the file was made from something else."""
        if path is None:
            return cls({}, {})
        said = read_json(path)
        require(path, said["provenance"], **made_from)
        whole: Whole = {"predicted_nats": said["predicted_nats"]}
        if "swaps" in said:
            whole["swaps"] = said["swaps"]
        return cls({row["linear"]: row for row in said["linears"]}, whole)

    @property
    def grids(self) -> Widths:
        return {name: (row["bits"], row["group_size"]) for name, row in self.rows.items()}

    def told(self, record: MethodRecord) -> MethodRecord:
        """A method's record with what the choice says; each linear's predicted_nats is of what it became."""
        said = {
            name: {key: value for key, value in row.items() if key != "predicted_nats"}
            for name, row in self.rows.items()
        }
        linears = [row | said.get(row["linear"], {}) for row in record["linears"]]
        return {**record, "linears": linears, **self.whole}
