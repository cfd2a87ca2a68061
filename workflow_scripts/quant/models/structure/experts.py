"""Experts that transformers holds as one 3-D parameter, as one nn.Linear each, under the names that files give them.

Most mixtures keep gate and up of all experts in gate_up_proj [experts, 2·intermediate, hidden] and down in down_proj
[experts, hidden, intermediate], and write them expert by expert. Here they are what is written, so that whatever works
on a model's linears works on its experts; a packed file of theirs is one that transformers and vLLM read. Those that
files hold whole, in either orientation, are pieces of them there (files.pieces); so are GPT-2's Conv1D, linears whose
weights lie the other way round.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from quant.errors import InputError
from quant.files.pieces import Piece, Wholes
from quant.models.structure.unrolled import DOWN, Layout, Repeated, Routed, RoutedOrKept, Sorted, Unrolled

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# of experts that do not say themselves how they lie in memory: has_bias, is_transposed, is_concatenated
LAID = {"Llama4TextExperts": (False, True, True), "LongcatFlashExperts": (False, False, True)}
# one linear an expert, over sorted tokens: whether their weights are transposed, [experts, in, out]
SORTED = {"JetMoeParallelExperts": False, "AriaGroupedExpertsGemm": True}
CALLED: dict[str, type[Unrolled]] = dict.fromkeys(SORTED, Sorted)  # others are Routed
CALLED |= {"Llama4TextExperts": Repeated, "LongcatFlashExperts": RoutedOrKept}


class Unrolling(NamedTuple):
    """Linears that are pieces of larger parameters: those that files hold so, and those that they split."""

    written: Wholes
    split: dict[str, Piece]

    def fused(self) -> set[str]:
        """Names of the larger parameters."""
        return {piece.whole for piece in (*self.written.pieces.values(), *self.split.values())}


def held(model: nn.Module) -> dict[str, nn.Module]:
    """By name, the modules that hold several experts in one parameter."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, Unrolled) or of_experts(module)
    }


def of_experts(module: nn.Module) -> bool:
    """Whether a module's own parameters are experts', whatever the layout: in three dimensions, or one expert after
    another in two (DBRX)."""
    own = [parameter for _, parameter in module.named_parameters(recurse=False)]
    kind = type(module).__name__.lower()
    if "expert" not in kind or isinstance(module, (nn.Linear, nn.Embedding)):
        return False
    fewest = 2 if "glu" in kind or "mlp" in kind else 3
    return any(parameter.ndim >= fewest and min(parameter.shape) > 1 for parameter in own)


def unknown(module: nn.Module) -> InputError:
    return InputError(
        f"mixture of experts of a layout not known here ({type(module).__name__}): its experts would stay in 16 bit; "
        "use a model whose experts transformers writes one by one, or a dense one"
    )


def layout_of(model: "PreTrainedModel", path: str, experts: nn.Module) -> Layout:
    """How an experts module lies in memory, and what transformers calls the linears of an expert when it writes them
    one by one; refuses a layout that is not known."""
    keys = ("has_bias", "is_transposed", "is_concatenated")
    if set(keys) <= set(vars(experts)):
        laid = tuple(bool(getattr(experts, key)) for key in keys)
    elif type(experts).__name__ in LAID:
        laid = LAID[type(experts).__name__]
    else:
        raise unknown(experts)
    gated = getattr(experts, "has_gate", True)
    has_bias, transposed, concatenated = laid
    whole = Layout("gate_proj" if gated else None, "up_proj", "down_proj", has_bias, transposed, concatenated, True)
    sizes = {name: getattr(experts, name).shape for name in (whole.first, DOWN)}
    own = {name for name, _ in experts.named_parameters(recurse=False)}
    known = {*sizes, *(f"{name}_bias" for name in sizes if whole.has_bias)}
    if own != known or any(len(shape) != 3 for shape in sizes.values()):
        raise unknown(experts)
    if laid != (False, False, True):
        return whole
    names = written_names(model, path, {name: shape[0] for name, shape in sizes.items()}, whole)
    return whole if names is None else Layout(*names)


def written_names(
    model: "PreTrainedModel", path: str, counts: dict[str, int], whole: Layout
) -> tuple[str | None, str, str] | None:
    """What transformers calls an expert's gate, up and down in a file; None where it writes them whole. counts: experts
    in each parameter."""
    from transformers.core_model_loading import revert_weight_conversion

    leaves: dict[tuple[str, int], set[str]] = {}
    for name, n in counts.items():
        parts = 2 if name == whole.first and whole.gate else 1
        code = torch.arange(float(n * parts)).view(n, parts, 1)  # each row says where it came from
        try:
            written = revert_weight_conversion(model, {f"{path}.{name}": code})
        except Exception:  # an operation that wants the weights' real shapes
            return None
        for key, value in written.items():
            found = re.fullmatch(r".*\.(\d+)\.(\w+)\.weight", key)
            if found is None or value.numel() != 1 or int(found[1]) != int(value.item()) // parts:
                return None
            leaves.setdefault((name, int(value.item()) % parts), set()).add(found[2])
    if any(len(names) != 1 for names in leaves.values()):
        return None
    names = {key: next(iter(found)) for key, found in leaves.items()}
    gate = names[whole.first, 0] if whole.gate else None
    return gate, names[whole.first, 1 if whole.gate else 0], names[DOWN, 0]


def pieces_of(path: str, module: nn.Module, layout: Layout) -> Iterator[tuple[str, Piece]]:
    """Every expert's weights and biases by name, as pieces of an experts module's parameters."""
    for parameter, leaves in ((layout.first, (layout.gate, layout.up)), (DOWN, (layout.down,))):
        shape = getattr(module, parameter).shape
        n_out = shape[2 if layout.transposed else 1]
        for index in range(shape[0]):
            for leaf in leaves:
                if leaf is None:
                    continue
                name = f"{path}.{index}.{leaf}"
                rows = slice(None) if parameter == DOWN else layout.rows(leaf, n_out)
                place = index, rows.start or 0, rows.stop, rows.step or 1
                yield f"{name}.weight", Piece(f"{path}.{parameter}", *place, layout.transposed)
                if layout.has_bias:
                    yield f"{name}.bias", Piece(f"{path}.{parameter}_bias", *place)


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """An nn.Linear of a weight [out, in] and a bias [out], which are not copied."""
    with torch.device("meta"):
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """A module in its place of a model; what is missing on the way there is made."""
    owner = model
    for part in name.split(".")[:-1]:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    owner._modules[name.rpartition(".")[2]] = module


def unroll(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model with every expert's linears, and every Conv1D, as an nn.Linear of its own; their weights are views of
    what was there. `unrolling` says of what."""
    from transformers.pytorch_utils import Conv1D

    found = {path: module for path, module in held(model).items() if not isinstance(module, Unrolled)}
    layouts: dict[type, Layout] = {}
    for path, module in found.items():
        if type(module).__name__ not in SORTED and type(module) not in layouts:
            layouts[type(module)] = layout_of(model, path, module)
    turned = [path for path, module in model.named_modules() if isinstance(module, Conv1D)]
    pieces: dict[str, Piece] = {f"{path}.weight": Piece(f"{path}.weight", transposed=True) for path in turned}
    split: dict[str, Piece] = {}
    for path, module in found.items():
        kind = type(module).__name__
        if kind in SORTED:
            n, weight = len(module.get_parameter("weight")), f"{path}.weight"
            pieces |= {f"{path}.{index}.weight": Piece(weight, index, transposed=SORTED[kind]) for index in range(n)}
        else:
            layout = layouts[type(module)]
            (pieces if layout.whole else split).update(pieces_of(path, module, layout))
    values = {piece.whole: model.get_parameter(piece.whole) for piece in (*pieces.values(), *split.values())}
    views = {name: piece.of(values[piece.whole].detach()) for name, piece in (pieces | split).items()}
    biases = {f"{path}.bias": model.get_parameter(f"{path}.bias") for path in turned}
    for path, module in found.items():
        own = {name.rpartition(".")[2] for name in values if name.rpartition(".")[0] == path}
        n_experts, former = max(len(getattr(module, name)) for name in own), type(module)
        for name in own:
            del module._parameters[name]
        module.__class__ = type(f"Unrolled{former.__name__}", (CALLED.get(former.__name__, Routed), former), {})
        assert isinstance(module, Unrolled)
        module.num_experts = n_experts
        if former in layouts:
            module.layout = layouts[former]
    for name, view in views.items():
        if name.endswith(".weight"):
            bias = f"{name.removesuffix('.weight')}.bias"
            put(model, name.removesuffix(".weight"), linear(view, views.get(bias, biases.get(bias))))
    shapes = {piece.whole: tuple(values[piece.whole].shape) for piece in pieces.values()}
    vars(model)["unrolled"] = Unrolling(Wholes(shapes, pieces), split)
    return model


def unrolling(model: nn.Module) -> Unrolling:
    """What `unroll` made of a model."""
    found: Unrolling = vars(model)["unrolled"]
    return found


def split(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Whole tensors of an unrolled model's experts as its own: views of them."""
    made = unrolling(model)
    pieces = made.written.pieces | made.split
    given = {piece.whole: tensors[piece.whole] for piece in pieces.values() if piece.whole in tensors}
    tensors = {name: value for name, value in tensors.items() if name not in given}
    for name, piece in pieces.items():
        if piece.whole in given:
            tensors[name] = piece.of(given[piece.whole])
    return tensors


def inputs_of(block: nn.Module) -> list[list[int]]:
    """What a block's experts read, the narrowest first: width, and how many experts."""
    found = []
    for path, module in routing(block).items():
        for leaf in module.readers():
            first = ".".join(filter(None, (path, "0", leaf)))
            found.append([int(block.get_parameter(f"{first}.weight").shape[1]), module.called()])
    return sorted(found)


def routing(block: nn.Module) -> dict[str, Unrolled]:
    """By name, the unrolled experts modules of a block."""
    return {name: module for name, module in block.named_modules() if isinstance(module, Unrolled)}
