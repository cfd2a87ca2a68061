"""What a job of each rule takes: memory, disk and work, of the model's shape and the study's options. Pure, and without
torch, since rules ask for resources while the DAG is built.

Memory was fitted to measured peaks (tests/unit/workflow/estimates/test_estimate.py holds both against each other).
"""

from collections.abc import Callable

from quant.models.structure.depth import layer_at
from quant.recipe import keys
from quant.workflow.estimates.amounts import (
    LIGHT,
    MAPPED,
    MB,
    Ask,
    Estimate,
    ends,
    forward,
    head,
    is_packed,
    moments,
    n_batches,
    n_linears,
    outer,
    products,
    stored,
)
from quant.workflow.estimates.loaded import CHUNK_BYTES, RESIDENT, TRANSFORMERS, by_block, loaded, unpacking
from quant.workflow.estimates.work import (
    OF_PASS,
    WIDEST,
    feeding,
    in_float32,
    learning,
    plain,
    refining,
    searching,
    streaming,
)

TORCH = 320 * MB  # a process that has imported as much
TEXTS = 800 * MB  # and has split a text of 1.5 MB: 634 on a CPU, 1007 where torch is for GPUs
COMPARING = 3.0  # seconds until the original's logits are there, too
OF_EVALUATION = 0.8  # of the time that other work of as many products takes on a GPU
PORTIONS, KEPT = 0.35e9, 2**28  # recipe.context, of rows on a GPU; calibration.kept, of both streams on one,
SMALL, KEPT_OF_SMALL = 2**26, 2**31  # and of a block of so many bytes
ATTENDED = 4096  # tokens, calibration.attention_moments
SUMMED = 60.0  # operations of a linear, whose sums are written
JUDGED = 60.0  # and of one that is held against its original's
OF_BLOCK = 20.0  # and in a pass of a block's own
READ_OF_TOKEN, DRAWN = 8.0, 2.0  # bytes of a number that linears read or put out; times those to draw noise for it
SAMPLE = 520  # bytes of samples and ranges an output channel


def converting(ask: Ask) -> Estimate:
    """Tensor by tensor: the largest is dequantised and copied in float32, the rest is mapped. Each is held against its
    checksum and looked through, 0.25 GB a second (17 s for 1.3 GB, 34 s for 5.4 GB)."""
    shape, size = ask.shape, stored(ask.shape)
    own = 12.0 * max(shape.embedding, shape.largest)
    return Estimate(
        ask.host(TRANSFORMERS, mapped=size, own=own), disk=size, read=size, written=size, start=10.0 + size / 2.5e8
    )


def small(ram: float = LIGHT, start: float = 2.0) -> Callable[[Ask], Estimate]:
    return lambda ask: Estimate(ram, start=start)


def collecting(ask: Ask) -> Estimate:
    shape, (tokens, width) = ask.shape, ask.calibration
    hidden = tokens * shape.hidden * ask.width
    outputs = shape.depth * sum(each.n * each.n_out for each in shape.linears)
    block = shape.block * ask.width
    squares = 4.0 * sum(count * n * n for count, n in shape.inputs)
    embedding = shape.embedding * ask.width
    work = block + squares + max(6.5 * shape.widest**2, ask.passing(tokens))  # the latter while a batch runs
    on_card = min(hidden, RESIDENT) + max(embedding, work)
    own = 3.0 * outputs * SAMPLE + (4 if ask.on_gpu else 16) * shape.widest**2
    own += max(hidden - RESIDENT, 0) if ask.on_gpu else hidden + max(embedding, work)
    disk = moments(shape, ask.config) + outputs * (SAMPLE + 16)
    calls = n_linears(shape) * (OF_PASS * n_batches(ask, tokens, width) + SUMMED)
    spilled = 2.0 * shape.depth * hidden if ask.on_gpu and hidden > RESIDENT else 0.0
    return Estimate(
        ask.host(
            TRANSFORMERS, mapped=stored(shape), own=own, locked=2 * block + moments(shape, ask.config) / shape.depth
        ),
        on_card if ask.on_gpu else 0,
        disk,
        model=forward(shape, tokens, width) + (outer(shape, tokens) if ask.on_gpu else 0),
        float32=0 if ask.on_gpu else outer(shape, tokens),
        moved=READ_OF_TOKEN * tokens * (outputs + shape.depth * sum(n * k for k, n in shape.inputs)),
        calls=calls,
        carried=spilled,
        read=shape.quantised * shape.width,
        written=disk,
        blocks=shape.depth,
        before=shape.embedding * shape.width,
        start=ask.starting(True),
    )


def weighing(passes: float, parts: int) -> Callable[[Ask], Estimate]:
    """A pass for weighted moments, each [parts, …] of every linear; passes: how often the model runs."""

    def found(ask: Ask) -> Estimate:
        shape, (tokens, width) = ask.shape, ask.calibration
        asked = ask.wildcards.get("parts", parts)
        n = 1 if asked == "rows" else int(asked)
        wide = [(e.n, e.n_out if asked == "rows" else e.n_in) for e in shape.linears]
        own = 4.0 * shape.depth * sum(count * n * size * (size + 1) / 2 for count, size in wide)
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


def attending(ask: Ask) -> Estimate:
    """The calibration's first tokens, forth and back within each block; R of two linears of each."""
    shape, (tokens, width) = ask.shape, ask.calibration
    own = 4.0 * shape.depth * shape.hidden * (shape.hidden + 1)
    model = 3 * forward(shape, max(width, min(tokens, ATTENDED)), width)
    return collecting(ask)._replace(disk=own, written=own, model=model, float32=0)


def noisy(ask: Ask) -> Estimate:
    shape, plain, (tokens, width) = ask.shape, collecting(ask), ask.calibration
    small = shape.depth * sum(e.n * (e.n_in + e.n_out) for e in shape.linears) * 16.0
    draws = int(ask.wildcards.get("noise", "x3").rpartition("x")[2])
    drawn = DRAWN * draws * plain.moved if ask.on_gpu else 0.0
    model = forward(shape, tokens, width) * (1 if ask.on_gpu else 4)
    return plain._replace(disk=small, written=small, model=model, float32=0, moved=drawn)


def quantising(ask: Ask, mapped: int = 1) -> Estimate:
    """mapped: how many times the checkpoint is."""
    shape, recipe = ask.shape, ask.recipe
    files = keys.statistics_files(recipe)
    with_moments = bool({"moments", "weighted"} & files.keys()) or recipe["inputs"] == "sequential"
    size, made = stored(shape), stored(shape, recipe)
    square = 4.0 * shape.widest**2 if with_moments else 0.0
    # weights and codes; H, and while it is read or factored others as large; one linear in float32, and portions
    held = (shape.width + 1) * shape.block + (3.1 if recipe["rounding"] == "gptq" else 2.2) * square
    held += 8.0 * shape.largest + (PORTIONS if ask.on_gpu else 0)
    known = moments(shape, ask.config) if with_moments else 0.0
    locked = 2 * (shape.block * shape.width + known / shape.depth) + (made - ends(shape)) / shape.depth
    work = plain(shape).plus(searching(shape, recipe))
    if recipe["rounding"] == "gptq":
        work = work.plus(feeding(shape))
    if recipe["refine"]:
        work = work.plus(refining(shape, recipe["refine"]))
    if not ask.on_gpu:
        work = in_float32(shape, recipe)
    return Estimate(
        ask.host(
            TORCH,
            mapped=mapped * size + known,
            own=4.0 * 4 * shape.largest + (0 if ask.on_gpu else held),
            locked=locked,
        ),
        held if ask.on_gpu else 0,
        made,
        *work,
        read=size - ends(shape) + known,
        written=made,
        blocks=shape.depth,
        before=ends(shape),
        start=ask.starting(False),
    )


def running(ask: Ask) -> Estimate:
    """Recipes that run the model: two streams through it, and tuning."""
    shape, recipe = ask.shape, ask.recipe
    plain = quantising(ask, 2 if recipe["inputs"] == "sequential" else 1)
    tokens = recipe["n_calib"] * ask.calibration[1]
    hidden = 2 * tokens * shape.hidden * ask.width
    passing = ask.passing(tokens)
    if ask.on_gpu:  # in bounded batches, while two second moments are summed and none is factored
        passing = max(0, min(passing, WIDEST * (3 + 8 * shape.hidden / shape.middle)) - 4.0 * shape.widest**2)
    work = 2 * shape.block * ask.width + passing
    held, ram = plain.gpu, plain.ram + TRANSFORMERS - TORCH
    model, float32 = plain.model + learning(ask), plain.float32
    if recipe["inputs"] == "sequential":
        work_of = streaming(ask, bool(recipe["correction"]))
        plain = plain._replace(calls=plain.calls + work_of.calls, read=plain.read + shape.quantised * shape.width)
        model, float32 = model + work_of.model, float32 + work_of.float32
        kept = tokens * ask.width * sum(count * n for count, n in shape.inputs)  # calibration.kept: inputs, outputs
        kept += tokens * ask.width * (6 * shape.hidden + 2 * shape.middle)
        held += min(kept, KEPT_OF_SMALL if shape.block * ask.width <= SMALL else KEPT)
        held -= shape.width * shape.block if shape.width == ask.width else 0  # which the stream's block has too
    if recipe["reconstruct"] is not None:
        hidden *= 1.5
        # of each weight in float32: its place, gradient and two means of that, itself, and what its own gradient passes
        work = max(work, 2 * shape.block * ask.width + 32.0 * shape.block + 2 * ask.passing(tokens))
    tuned = 0.0  # once the streams have gone
    if recipe["tune"] is not None:
        tuned = 3 * shape.weights * ask.width + 1.5 * CHUNK_BYTES * ask.width + 4 * ask.passing(tokens)
    if ask.on_gpu:
        ram += max(0, hidden - 2 * RESIDENT)
        gpu = max(min(hidden, 2 * RESIDENT) + held + work, tuned)
    else:
        ram, gpu = ram + max(hidden + work, tuned) + 2**30, 0
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


def choosing(ask: Ask) -> Estimate:
    """Tables and headers."""
    return Estimate(TORCH + 16.0 * ask.shape.largest, start=4.0)


def erring(ask: Ask) -> Estimate:
    shape = ask.shape
    made, known = stored(shape, ask.recipe), moments(shape, ask.config)
    held = 12.0 * shape.largest + 12.0 * shape.widest**2
    return Estimate(
        ask.host(TORCH, mapped=stored(shape) + made + known, own=0 if ask.on_gpu else held),
        held if ask.on_gpu else 0,
        10 * MB,
        float32=products(shape),
        calls=JUDGED * n_linears(shape),
        read=stored(shape) + made + known,
        start=ask.starting(False),
    )


def evaluating(ask: Ask) -> Estimate:
    shape, (tokens, width) = ask.shape, ask.data
    original = "method" not in ask.wildcards
    recipe = None if original else ask.recipe
    made = stored(shape, recipe)
    ram, gpu = loaded(ask, tokens, made, recipe is not None and is_packed(recipe))
    ram += unpacking(ask)
    budget = ask.config["datasets"][ask.wildcards["dataset"]]["kl_tokens"]
    compared = min(tokens, tokens if budget is None else budget)
    kept = compared * shape.hidden * ask.width if original else 0.0
    work = forward(shape, tokens, width) + head(shape, tokens) + (0 if original else head(shape, compared))
    work *= OF_EVALUATION if ask.on_gpu else 1
    start = ask.loading(made) + (0 if original or not ask.on_gpu else COMPARING)
    found = Estimate(ram, gpu, kept + MB, work, read=made, written=kept, start=start)
    if not by_block(ask, tokens):
        return found
    calls = OF_BLOCK * n_linears(shape) * n_batches(ask, tokens, width)
    before = 3.0 * shape.embedding * shape.width  # before the blocks, and twice after them
    return found._replace(calls=calls, read=made - ends(shape), before=before, blocks=shape.depth)


def answering(ask: Ask) -> Estimate:
    """Tasks and texts of a few hundred items, of a hundred tokens each."""
    shape, tokens = ask.shape, 300 * 100
    recipe = None if ask.wildcards["method"] == "original" else ask.recipe
    made = stored(shape, recipe)
    ram, gpu = loaded(ask, tokens, made, recipe is not None and is_packed(recipe))
    ram += unpacking(ask)
    return Estimate(ram, gpu, MB, model=2 * forward(shape, tokens, 100), read=made, start=ask.loading(made))


def parting(ask: Ask) -> Estimate:
    """The original with one part after the other swapped in."""
    shape, said, (tokens, width) = ask.shape, ask.config["sensitivity"], ask.data
    tokens = min(tokens, said["n_samples"] * width)
    of: dict[str, int] = {"kind": 7, "layer": shape.depth, "risk": 1 + said["draws"]}
    return swapped_in(ask, sum(of[by] for by in said["by"]), tokens, width)


def swapping(ask: Ask) -> Estimate:
    """The same of attention and MLP in sections of the depth, and of all; KL takes the original's head too."""
    (tokens, width), (sections, sequences) = ask.calibration, (int(ask.wildcards[k]) for k in ("sections", "sequences"))
    return swapped_in(ask, 2 + 2 * min(sections, ask.shape.depth), min(tokens, sequences * width), width, heads=2)


def swapped_in(ask: Ask, parts: int, tokens: int, width: int, heads: int = 1) -> Estimate:
    shape, made = ask.shape, stored(ask.shape, ask.recipe)
    ram, gpu = loaded(ask, tokens, made + stored(shape), False)
    work = parts * (forward(shape, tokens, width) + heads * head(shape, tokens))
    work *= OF_EVALUATION if ask.on_gpu else 1
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
    """Linear by linear; what is exported is tried block by block."""
    shape, size = ask.shape, stored(ask.shape)
    own = 8.0 * (shape.embedding + shape.block)
    return Estimate(ask.host(TRANSFORMERS, mapped=size, own=own), disk=size, read=size, written=size, start=10.0)


# rules by what a job of theirs takes; those that are not named take little, whatever the model
OF_MODEL: dict[str, Callable[[Ask], Estimate]] = {
    "convert": converting,
    "check_study": small(TRANSFORMERS),
    "tokenize_calibration": small(TEXTS, 6.0),
    "tokenize_dataset": small(TEXTS, 6.0),
    "check_texts": small(TRANSFORMERS, 4.5),
    "collect_statistics": collecting,
    "collect_noisy": noisy,
    "collect_jacobian": weighing(2, 1),
    "collect_end_loss": weighing(4, 1),
    "collect_attention": attending,
    "quantize": quantising,
    "quantize_with_model": running,
    "quantize_library": library,
    "quantize_budget": composing,
    "choose_widths": choosing,
    "measure_swaps": swapping,
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
