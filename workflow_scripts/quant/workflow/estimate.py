"""What a job of each rule takes: memory, disk and work, of the model's shape and the study's options. Pure, and without
torch, since rules ask for resources while the DAG is built.

Memory was fitted to measured peaks (tests/unit/workflow/test_estimate.py holds both against each other). Bytes and
multiply-adds (counted twice) throughout; tokens are those that the configuration asks for, at most.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from quant.models.depth import layer_at
from quant.recipe import keys
from quant.recipe.formats import SIMULATED, bits_per_weight
from quant.workflow.shape import EXPERTS, WIDTHS, Shape, moment_numbers, triangle

MB = 10**6
LIGHT, TORCH, TRANSFORMERS = 170 * MB, 320 * MB, 400 * MB  # a process that has imported as much
CUDA = 1900 * MB  # of the host, for a process that has used a GPU
MAPPED = 8000 * MB  # of mapped files at most: where memory is short, their pages are given back
RESIDENT = 2**30  # calibration.hidden: of hidden states on a GPU
CHUNK, CHUNK_BYTES = 512, 2**29  # evaluation.head: rows of logits on a CPU, bytes of them on a GPU
LOADED = 7e8  # bytes a second
OF_PASS = 0.6  # of the time that other work of as many products takes on a GPU
SAMPLE = 520  # bytes of samples and ranges an output channel


class Estimate(NamedTuple):
    """ram, gpu: peak bytes of the host (mapped pages among them) and of the card; disk: of the outputs; model, float32:
    FLOP by the type of the products; read, written: bytes of files; start: seconds before the work."""

    ram: float = LIGHT
    gpu: float = 0.0
    disk: float = 0.0
    model: float = 0.0
    float32: float = 0.0
    read: float = 0.0
    written: float = 0.0
    start: float = 2.0


class Ask(NamedTuple):
    """A job: its model's shape and the study's options; on_gpu: whether it computes on one; room: bytes of that device,
    beyond which a model runs block by block."""

    shape: Shape
    config: Mapping[str, Any]
    wildcards: Mapping[str, str]
    on_gpu: bool
    room: float = 80e9

    @property
    def width(self) -> int:
        """Bytes of a number in forward passes."""
        wanted = self.config["compute"]["dtype"]
        return WIDTHS.get(wanted, self.shape.width if self.on_gpu else 4)

    @property
    def batch(self) -> int:
        wanted = self.config["compute"]["batch_tokens"]
        return (16384 if self.on_gpu else 1024) if wanted == "auto" else int(wanted)

    @property
    def recipe(self) -> Mapping[str, Any]:
        return self.config["methods"][self.wildcards["method"]]

    @property
    def calibration(self) -> tuple[int, int]:
        """Tokens, and those of a sequence."""
        said = self.config["calibration"]
        name = self.wildcards.get("calibration")
        n = int(name[1:].partition("-")[0]) if name else said["n_calib"]
        return n * said["seq_len"], said["seq_len"]

    @property
    def data(self) -> tuple[int, int]:
        said = self.config["datasets"][self.wildcards["dataset"]]
        return said["n_samples"] * said["seq_len"], said["seq_len"]

    def host(self, imported: float, *, mapped: float = 0, own: float = 0) -> float:
        return imported + (CUDA if self.on_gpu else 0) + min(mapped, MAPPED) + own

    def passing(self, tokens: int) -> float:
        """Bytes of a batch on its way through a block, at its widest."""
        return min(self.batch, tokens) * (3 * self.shape.middle + 8 * self.shape.hidden) * self.width

    def starting(self, with_model: bool) -> float:
        return (7.0 if with_model else 4.0) if self.on_gpu else (4.5 if with_model else 2.5)

    def loading(self, size: float) -> float:
        """Seconds before a whole model of so many bytes runs: held against its checksums, then loaded."""
        return self.starting(True) + 3 + size / LOADED


def forward(shape: Shape, tokens: int, width: int) -> float:
    """Blocks on sequences of `width` tokens: linears, and causal attention."""
    return shape.depth * tokens * (2 * shape.active + 2 * shape.hidden * width)


def head(shape: Shape, tokens: int) -> float:
    return 2.0 * tokens * shape.embedding


def outer(shape: Shape, tokens: int) -> float:
    """XᵀX of every input, one triangle."""
    return shape.depth * sum(e.n * e.share * tokens * e.n_in * (e.n_in + 1) for e in shape.linears if e.reads)


def products(shape: Shape) -> float:
    """One triangle of D·H of every linear."""
    return shape.depth * sum(each.n * each.n_out * each.n_in * (each.n_in + 1.0) for each in shape.linears)


def bits_of(recipe: Mapping[str, Any], shape: Shape) -> float:
    """Of a packed weight, with its share of steps and zeros."""
    group = recipe["group_size"] if recipe["group_size"] > 0 else shape.hidden
    return bits_per_weight({**recipe, "group_size": group})


def is_packed(recipe: Mapping[str, Any]) -> bool:
    """Whether codes, steps and zeros are all that it needs (methods.packing says it of a model)."""
    if "algorithm" in recipe:
        return True
    alone = recipe["salience"] == "none" or recipe["scope"] == "shared"
    known = recipe["format"] not in SIMULATED
    return alone and known and recipe["keep"] == "none" and not recipe["noise_injection"]


def stored(shape: Shape, recipe: Mapping[str, Any] | None = None) -> float:
    """Bytes of a checkpoint: the original's, or a method's."""
    if recipe is None or not is_packed(recipe):
        return shape.weights * shape.width
    budget = recipe.get("budget") or {}
    if budget.get("size_mb"):
        return budget["size_mb"] * MB
    if "algorithm" in recipe:
        bits = recipe["bits"] + 20 / max(recipe["group_size"], 1)
    else:
        bits = budget.get("bits_per_weight") or bits_of(recipe, shape)
    return (shape.weights - shape.quantised) * shape.width + shape.quantised * bits / 8


def moments(shape: Shape, config: Mapping[str, Any]) -> float:
    """Bytes of the second moments on disk, as long as they are there."""
    said = config.get("moments", {"store": "float32", "budget_gb": None})
    width = 2.0 if said["store"] == "bfloat16" else 4.0
    dense = shape._replace(linears=tuple(each for each in shape.linears if each.n < EXPERTS))
    own = width * moment_numbers(dense)
    experts = width * moment_numbers(shape) - own
    pooled = (
        width * shape.depth * sum(triangle(each.n_in) for each in shape.linears if each.n >= EXPERTS and each.reads)
    )
    most = float("inf") if said["budget_gb"] is None else said["budget_gb"] * 1e9 + pooled
    return own + min(experts, most)


def fetched(ask: Ask) -> Estimate:
    return Estimate(LIGHT, start=2.0)


def converting(ask: Ask) -> Estimate:
    size = stored(ask.shape)
    return Estimate(TORCH + 2 * size, disk=size, read=size, written=size, start=6.0)


def small(ram: float = LIGHT, start: float = 2.0) -> Callable[[Ask], Estimate]:
    return lambda ask: Estimate(ram, start=start)


def collecting(ask: Ask) -> Estimate:
    shape, (tokens, width) = ask.shape, ask.calibration
    hidden = tokens * shape.hidden * ask.width
    outputs = shape.depth * sum(each.n * each.n_out for each in shape.linears)
    block = shape.block * ask.width
    squares = 4.0 * sum(count * n * n for count, n in shape.inputs)
    embedding = shape.embedding * ask.width
    work = block + squares + max(10.5 * shape.widest**2, ask.passing(tokens))  # the latter while a batch runs
    on_card = min(hidden, RESIDENT) + max(embedding, work)
    own = 3.0 * outputs * SAMPLE + 16 * shape.widest**2
    own += max(hidden - RESIDENT, 0) if ask.on_gpu else hidden + max(embedding, work)
    disk = moments(shape, ask.config) + outputs * (SAMPLE + 16)
    return Estimate(
        ask.host(TRANSFORMERS, mapped=stored(shape), own=own),
        on_card if ask.on_gpu else 0,
        disk,
        model=forward(shape, tokens, width) + (outer(shape, tokens) if ask.on_gpu else 0),
        float32=0 if ask.on_gpu else outer(shape, tokens),
        read=stored(shape),
        written=disk,
        start=ask.starting(True),
    )


def weighing(passes: float, parts: int) -> Callable[[Ask], Estimate]:
    """A pass for weighted moments, each [parts, …] of every linear; passes: how often the model runs."""

    def found(ask: Ask) -> Estimate:
        shape, (tokens, width) = ask.shape, ask.calibration
        n = int(ask.wildcards.get("parts", parts))
        own = 4.0 * shape.depth * sum(e.n * n * e.n_in * (e.n_in + 1) / 2 for e in shape.linears)
        plain = collecting(ask)
        sums = n * outer(shape, tokens) * len(shape.linears) / max(1, len(shape.inputs))
        return plain._replace(
            gpu=plain.gpu * 1.5,
            disk=own,
            written=own,
            model=passes * forward(shape, tokens, width),
            float32=sums,
        )

    return found


def noisy(ask: Ask) -> Estimate:
    plain = collecting(ask)
    small = ask.shape.depth * sum(e.n * (e.n_in + e.n_out) for e in ask.shape.linears) * 16.0
    return plain._replace(disk=small, written=small, model=4 * plain.model, float32=0)


def quantising(ask: Ask) -> Estimate:
    shape, recipe = ask.shape, ask.recipe
    files = keys.statistics_files(recipe)
    with_moments = bool({"moments", "weighted"} & files.keys()) or recipe["inputs"] == "sequential"
    size, made = stored(shape), stored(shape, recipe)
    square = 4.0 * shape.widest**2 if with_moments else 0.0
    held = 14.0 * shape.block + (7.5 if recipe["rounding"] == "gptq" else 1.7) * square
    known = moments(shape, ask.config) if with_moments else 0.0
    model = float32 = 0.0
    if recipe["salience"] != "none":
        model += (recipe["n_grid"] + 1) * products(shape)
    if recipe["clip"]:
        model += 8.0 * shape.quantised * 20
    if recipe["rounding"] == "gptq":
        float32 += products(shape) + shape.depth * sum(e.n * 2 / 3 * e.n_in**3 for e in shape.linears)
    float32 += recipe["refine"] * 2 * products(shape)
    if not ask.on_gpu:
        model, float32 = 0.0, model + float32
    return Estimate(
        ask.host(TORCH, mapped=size + known, own=4.0 * 4 * shape.largest + (0 if ask.on_gpu else held)),
        held if ask.on_gpu else 0,
        made,
        model,
        float32,
        read=size + known,
        written=made,
        start=ask.starting(False),
    )


def running(ask: Ask) -> Estimate:
    """Recipes that run the model: two streams through it, and tuning."""
    shape, recipe, plain = ask.shape, ask.recipe, quantising(ask)
    tokens, width = recipe["n_calib"] * ask.calibration[1], ask.calibration[1]
    hidden = 2 * tokens * shape.hidden * ask.width
    work = 2 * shape.block * ask.width + ask.passing(tokens)
    held, ram = plain.gpu, plain.ram + TRANSFORMERS - TORCH
    model, float32 = plain.model, plain.float32
    if recipe["inputs"] == "sequential":
        model += 3 * forward(shape, tokens, width)
        cross = outer(shape, tokens) * (3 if recipe["correction"] else 1)
        model, float32 = (model + cross, float32) if ask.on_gpu else (model, float32 + cross)
        model, float32 = 2.5 * model, 2.5 * float32
        kept = tokens * ask.width * sum(count * n for count, n in shape.inputs)  # calibration.kept: inputs, outputs
        kept += tokens * ask.width * (6 * shape.hidden + 2 * shape.middle)
        held += 8.0 * shape.widest**2 + min(kept, ask.room / 4)
    if recipe["reconstruct"] is not None:
        seen = recipe["reconstruct"]["iterations"] * recipe["reconstruct"]["batch"] / recipe["n_calib"]
        model += (3 * seen + 3) * forward(shape, tokens, width)
        hidden *= 1.5
        # of each weight in float32: its place, gradient and two means of that, itself, and what its own gradient passes
        work = max(work, 2 * shape.block * ask.width + 32.0 * shape.block + 2 * ask.passing(tokens))
    if recipe["tune"] is not None:
        epochs = recipe["tune"]["epochs"]
        model += (3 * epochs + 1) * (forward(shape, tokens, width) + head(shape, tokens))
        work = max(work, 3 * shape.weights * ask.width + 3 * CHUNK_BYTES + 4 * ask.passing(tokens))
    ram += max(0, hidden - 2 * RESIDENT) if ask.on_gpu else hidden + work + 2**30
    gpu = min(hidden, 2 * RESIDENT) + held + work if ask.on_gpu else 0
    return plain._replace(ram=ram, gpu=gpu, model=model, float32=float32, start=ask.starting(True))


def library(ask: Ask) -> Estimate:
    shape, recipe, (tokens, width) = ask.shape, ask.recipe, ask.calibration
    size, made = stored(shape), stored(shape, recipe)
    steps: dict[str, float] = {
        "autoround": 3 * recipe.get("iterations", 0) * recipe.get("batch", 0) * width / max(tokens, 1)
    }
    passes = steps.get(recipe["algorithm"], 25 if recipe["algorithm"] == "autoawq" else 3)
    held = tokens * (shape.hidden + shape.middle) * 4 + 12.0 * shape.block + ask.passing(tokens)
    return Estimate(
        ask.host(2 * TRANSFORMERS, own=2 * size + (0 if ask.on_gpu else held)),
        held + 2 * size if ask.on_gpu else 0,
        made,
        model=passes * forward(shape, tokens, width),
        read=size,
        written=made,
        start=40.0,
    )


def composing(ask: Ask) -> Estimate:
    """A budget's checkpoint from its candidates'."""
    size = stored(ask.shape, ask.recipe)
    own = 16.0 * ask.shape.largest
    return Estimate(TORCH + own + min(3 * size, MAPPED), disk=size, read=3 * size, written=size, start=4.0)


def erring(ask: Ask) -> Estimate:
    shape = ask.shape
    made, known = stored(shape, ask.recipe), moments(shape, ask.config)
    held = 12.0 * shape.largest + 12.0 * shape.widest**2
    return Estimate(
        ask.host(TORCH, mapped=stored(shape) + made + known, own=0 if ask.on_gpu else held),
        held if ask.on_gpu else 0,
        10 * MB,
        float32=products(shape),
        read=stored(shape) + made + known,
        start=ask.starting(False),
    )


def loaded(ask: Ask, tokens: int, made: float, packed: bool) -> tuple[float, float]:
    """Bytes of the host and the card for a model that is asked for logits: whole, or block by block where that is more
    than there is."""
    shape = ask.shape
    size = shape.weights * ask.width
    logits = 1.3 * min(CHUNK_BYTES, 4.0 * tokens * shape.vocabulary)
    padded = shape.embedding * ask.width if ask.on_gpu and shape.vocabulary % 8 else 0
    beside = logits + padded + ask.passing(tokens)
    if size + beside > ask.room:
        ends = shape.embedding * ask.width * 2
        hidden = tokens * shape.hidden * ask.width
        held = 2 * shape.block * ask.width + ends + beside + min(hidden, RESIDENT)
        if ask.on_gpu:
            return ask.host(
                TRANSFORMERS, mapped=made, own=max(0, hidden - RESIDENT) + 2 * shape.block * ask.width
            ), held
        return ask.host(TRANSFORMERS, mapped=made, own=held + max(0, hidden - RESIDENT)), 0.0
    if ask.on_gpu:
        return ask.host(TRANSFORMERS, mapped=made, own=size), size + beside
    logits = 8.0 * min(CHUNK, tokens) * shape.vocabulary
    unpacked = 4.0 * shape.quantised if packed else 0
    return ask.host(TRANSFORMERS, mapped=made, own=size + logits / 2 + unpacked + ask.passing(tokens)), 0.0


def evaluating(ask: Ask) -> Estimate:
    shape, (tokens, width) = ask.shape, ask.data
    original = "method" not in ask.wildcards
    recipe = None if original else ask.recipe
    made = stored(shape, recipe)
    ram, gpu = loaded(ask, tokens, made, recipe is not None and is_packed(recipe))
    budget = ask.config["datasets"][ask.wildcards["dataset"]]["kl_tokens"]
    compared = min(tokens, tokens if budget is None else budget)
    kept = compared * shape.hidden * ask.width if original else 0.0
    work = forward(shape, tokens, width) + head(shape, tokens) + (0 if original else head(shape, compared))
    work *= OF_PASS if ask.on_gpu else 1
    return Estimate(ram, gpu, kept + MB, model=work, read=made, written=kept, start=ask.loading(made))


def answering(ask: Ask) -> Estimate:
    """Tasks and texts of a few hundred items, of a hundred tokens each."""
    shape, tokens = ask.shape, 300 * 100
    recipe = None if ask.wildcards["method"] == "original" else ask.recipe
    made = stored(shape, recipe)
    ram, gpu = loaded(ask, tokens, made, recipe is not None and is_packed(recipe))
    return Estimate(ram, gpu, MB, model=2 * forward(shape, tokens, 100), read=made, start=ask.loading(made))


def parting(ask: Ask) -> Estimate:
    """The original with one part after the other swapped in."""
    shape, said, (tokens, width) = ask.shape, ask.config["sensitivity"], ask.data
    tokens = min(tokens, said["n_samples"] * width)
    of: dict[str, int] = {"kind": 7, "layer": shape.depth, "risk": 1 + said["draws"]}
    parts = sum(of[by] for by in said["by"])
    made = stored(shape, ask.recipe)
    ram, gpu = loaded(ask, tokens, made + stored(shape), False)
    work = parts * (forward(shape, tokens, width) + head(shape, tokens))
    work *= OF_PASS if ask.on_gpu else 1
    return Estimate(ram, gpu, MB, model=work, read=parts * made, start=ask.loading(made + stored(shape)))


def checking(ask: Ask) -> Estimate:
    shape, said = ask.shape, ask.config["check_mse"]
    named = ask.config["datasets"][ask.config["study"]["datasets"][0]]
    width = named["seq_len"]
    tokens = min(named["n_samples"], said["n_samples"]) * width
    part = (1 + layer_at(said["layer"] if said["layer"] is not None else 0, shape.depth)) / shape.depth
    squares = 4.0 * len(shape.linears) * shape.widest**2
    held = tokens * shape.hidden * ask.width + 12.0 * shape.block + squares + ask.passing(tokens)
    held = max(held, shape.embedding * ask.width)
    return Estimate(
        ask.host(TRANSFORMERS, mapped=stored(shape) * part, own=held / 2 if ask.on_gpu else held * 2),
        held if ask.on_gpu else 0,
        4.0 * sum(n * (n + 1) / 2 for n in (each.n_in for each in shape.linears)),
        model=part * forward(shape, tokens, width),
        float32=6.0 * tokens * shape.block,
        read=stored(shape) * part,
        start=ask.starting(True),
    )


def compared(ask: Ask) -> Estimate:
    """Every method's few linears of one layer."""
    n = len(ask.config["study"]["methods"])
    block = 8.0 * ask.shape.block
    return Estimate(ask.host(TORCH, mapped=n * block / 2, own=block), block if ask.on_gpu else 0, MB,
                    start=ask.starting(False))  # fmt: skip


def analysing(drawing: float) -> Callable[[Ask], Estimate]:
    """Samples of what linears put out, and their rows' mean weights; drawing: bytes of the libraries for figures."""

    def found(ask: Ask) -> Estimate:
        samples = SAMPLE * ask.shape.depth * sum(each.n * each.n_out for each in ask.shape.linears)
        ram = TORCH + drawing + min(samples + stored(ask.shape), MAPPED)
        return Estimate(ram, disk=10 * MB, read=samples, start=3.0 + samples / (8 * MB if drawing else 1000 * MB))

    return found


def exporting(ask: Ask) -> Estimate:
    size = stored(ask.shape)
    return Estimate(2 * TRANSFORMERS + size, disk=size, read=size, written=size, start=10.0)


# rules by what a job of theirs takes; those that are not named take little, whatever the model
OF_MODEL: dict[str, Callable[[Ask], Estimate]] = {
    "convert": converting,
    "check_study": small(TRANSFORMERS),
    "tokenize_calibration": small(TRANSFORMERS, 4.5),
    "tokenize_dataset": small(TRANSFORMERS, 4.5),
    "check_texts": small(TRANSFORMERS, 4.5),
    "collect_statistics": collecting,
    "collect_noisy": noisy,
    "collect_jacobian": weighing(2, 1),
    "collect_end_loss": weighing(4, 1),
    "quantize": quantising,
    "quantize_with_model": running,
    "quantize_library": library,
    "quantize_budget": composing,
    "measure_error": erring,
    "evaluate_original": evaluating,
    "evaluate": evaluating,
    "evaluate_task": answering,
    "write_words": answering,
    "measure_sensitivity": parting,
    "check_mse": checking,
    "measure_heldout": compared,
    "analyse_preactivations": analysing(0),
    "plot_preactivations": analysing(60 * MB),
    "deep_dive": small(TRANSFORMERS),
    "plot_deep_dive": small(TRANSFORMERS + 60 * MB),
    "export": exporting,
    "export_gguf": exporting,
}
