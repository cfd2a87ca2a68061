"""What a study will take on a machine, step by step, before anything large runs; and whether it fits."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from quant.files.units import megabytes
from quant.recipe import keys
from quant.workflow.estimates.amounts import Ask, Estimate, moments, stored
from quant.workflow.estimates.needs import ON_GPU, estimated
from quant.workflow.estimates.rates import Rates, seconds
from quant.workflow.estimates.shape import Shape

GB = 1e9
REST = "tables, figures, report"
KEPT = 0.7  # of the memory that may keep files
REST_S = 40.0  # of steps that no model makes longer


class Machine(NamedTuple):
    """Where a study runs: its device, cpu or cuda, and that one's name; bytes of the host, of the card, and free on the
    disk; rates of the device."""

    device: str
    name: str
    ram: float
    gpu: float
    disk: float
    rates: Rates


class Job(NamedTuple):
    rule: str
    wildcards: dict[str, str]


class Step(NamedTuple):
    """The jobs of a rule: how many, their seconds and bytes of files together, peaks of the largest."""

    rule: str
    jobs: int
    seconds: float
    ram: float
    gpu: float
    disk: float


def quantising(recipe: Mapping[str, Any]) -> str:
    """The rule that makes a method."""
    ways = {"library": "quantize_library", "candidates": "quantize_budget", "model": "quantize_with_model"}
    return ways.get(keys.way_of(recipe), "quantize")


def statistics(name: str) -> tuple[str, dict[str, str]] | None:
    """The rule that makes a statistics file, and its wildcards."""
    folder, _, file = name.removeprefix("calibration/").partition("/")
    rules = {"channels": "collect_statistics", "second_moments": "collect_statistics", "jacobian": "collect_jacobian"}
    stem = file.removesuffix(".safetensors")
    if stem.startswith("end_loss-"):
        return "collect_end_loss", {"calibration": folder, "parts": stem.partition("-")[2]}
    if stem == "attention-rows":
        return "collect_attention", {"calibration": folder}
    if stem.startswith("noisy-"):
        return "collect_noisy", {"calibration": folder, "noise": stem}
    rule = rules.get(stem.removesuffix("_residual"))
    return (
        None if rule is None else (rule, {"calibration": folder} | ({"jacobian": stem} if "jacobian" in rule else {}))
    )


def jobs(config: Mapping[str, Any]) -> Iterator[Job]:
    """Of a study, in the order in which they run."""
    study, known = config["study"], config["methods"]
    candidates = [name for method in study["methods"] for name in config["candidates"].get(method, [])]
    made = list(dict.fromkeys([*candidates, *study["methods"], *config["sensitivity"]["methods"]]))
    measured = list(dict.fromkeys([*candidates, *study["methods"]]))
    first = study["datasets"][0]
    part = first if config["sensitivity"]["dataset"] == "first" else config["sensitivity"]["dataset"]
    common = f"calibration/n{config['calibration']['n_calib']}-s{config['calibration']['seed']}"
    files = [f"{common}/channels.safetensors", f"{common}/second_moments.safetensors"]
    files += [file for name in made for file in keys.statistics_files(known[name]).values()]
    passes = {tuple(each[1].items()): each for file in files if (each := statistics(file)) is not None}
    passes_of = {(rule, *sorted(wildcards.items())): Job(rule, wildcards) for rule, wildcards in passes.values()}
    asked = [*study["tasks"]]
    for model in study["models"]:
        of = {"model": model}
        yield from (Job(rule, of) for rule in ("convert", "check_study", "check_texts"))
        yield from (
            Job("tokenize_calibration", of | {"calibration": name}) for name in calibrations(passes_of.values())
        )
        yield from (Job("tokenize_dataset", of | {"dataset": name}) for name in study["datasets"])
        yield from (Job(rule, of | wildcards) for rule, wildcards in passes_of.values())
        yield from (Job("evaluate_original", of | {"dataset": name}) for name in study["datasets"])
        yield from (Job(quantising(known[name]), of | {"method": name}) for name in made)
        yield from (Job("measure_error", of | {"method": name}) for name in measured)
        yield from (Job("measure_swaps", of | each) for each in swaps(config))
        yield from (
            Job("choose_widths", of | {"method": name})
            for name in made
            if name in config["candidates"] and keys.runs_model(known[name])
        )
        for name in study["methods"]:
            yield from (Job("evaluate", of | {"method": name, "dataset": each}) for each in study["datasets"])
        yield from (
            Job("measure_sensitivity", of | {"method": name, "dataset": part})
            for name in config["sensitivity"]["methods"]
        )
        if config["check_mse"]["layer"] is not None:
            yield from (Job(rule, of) for rule in ("check_mse", "measure_heldout"))
        answering = ["original", *study["task_methods"]]
        yield from (Job("evaluate_task", of | {"method": name, "task": task}) for task in asked for name in answering)
        if config["words"]["task"] is not None:
            yield from (Job("write_words", of | {"method": name}) for name in answering)
        yield from (Job(rule, of) for rule in ("analyse_preactivations", "plot_preactivations"))
        for layer in config["deep_dive"]["layers"]:
            yield from (Job(rule, of | {"layer": str(layer)}) for rule in ("deep_dive", "plot_deep_dive"))


def swaps(config: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The wildcards of a model's jobs that measure some."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for method in config["study"]["methods"]:
        if method in config["candidates"] and (asked := config["methods"][method]["swaps"]):
            numbers = {key: str(value) for key, value in asked.items()}
            found |= {(name, *numbers.values()): {"method": name} | numbers for name in config["candidates"][method]}
    yield from found.values()


def calibrations(passes: Any) -> list[str]:
    """The calibration sets of these passes."""
    return list(dict.fromkeys(job.wildcards["calibration"] for job in passes))


def estimates(
    config: Mapping[str, Any], shapes: Mapping[str, Shape], machine: Machine
) -> Iterator[tuple[Job, Estimate, float]]:
    """Every job with what it takes, and its seconds: at the disk's rate where memory does not keep a model and its
    second moments between jobs."""
    for job in jobs(config):
        on_gpu = machine.device != "cpu" and job.rule in ON_GPU
        room, shape, rates = machine.gpu if on_gpu else machine.ram, shapes[job.wildcards["model"]], machine.rates
        if stored(shape) + moments(shape, config) > KEPT * machine.ram:
            rates = rates._replace(read=rates.cold)
        found = estimated(job.rule, Ask(shape, config, job.wildcards, on_gpu, room, machine.ram))
        yield job, found, seconds(found, rates, "cuda" if on_gpu else "cpu")


def steps(found: list[tuple[Job, Estimate, float]]) -> list[Step]:
    """By rule."""
    by_rule: dict[str, list[tuple[Estimate, float]]] = {}
    for job, estimate, spent in found:
        by_rule.setdefault(job.rule, []).append((estimate, spent))
    rows = [
        Step(
            rule,
            len(each),
            sum(spent for _, spent in each),
            max(one.ram for one, _ in each),
            max(one.gpu for one, _ in each),
            sum(one.disk for one, _ in each),
        )
        for rule, each in by_rule.items()
    ]
    return [*rows, Step(REST, 1, REST_S, 7e8, 0.0, 5e7)]


def most_on_disk(by_rule: Mapping[str, float], sums: float) -> float:
    """Bytes of a study's files at most: of all, by rule, or while shards of statistics, of `sums` bytes, are summed."""
    return max(sum(by_rule.values()), by_rule.get("convert", 0.0) + by_rule.get("collect_statistics", 0.0) + sums)


def shards_sums(config: Mapping[str, Any], shapes: Iterable[Shape]) -> float:
    """Bytes of moments that go again once they are summed, of the model that has most."""
    shards = config["compute"].get("shards", 1)
    return max((shards * moments(shape, config) for shape in shapes), default=0.0) if shards > 1 else 0.0


def gb(size: float) -> str:
    """10⁹ bytes, three digits at least."""
    return f"{size / GB:,.0f}" if size >= 100 * GB else f"{size / GB:.3g}"


def misfits(rows: list[Step], machine: Machine, there: float, sums: float = 0.0) -> list[str]:
    """What does not fit, each with the number; there: bytes that the study has on the disk already; sums: of shards'
    moments."""
    found = [
        f"{row.rule}: takes {gb(row.ram)} GB of memory, and the machine has {gb(machine.ram)}"
        for row in rows
        if row.ram > machine.ram
    ]
    found += [
        f"{row.rule}: takes {gb(row.gpu)} GB of the GPU, and that has {gb(machine.gpu)}"
        for row in rows
        if row.gpu > machine.gpu
    ]
    disk = most_on_disk({row.rule: row.disk for row in rows}, sums)
    if disk > machine.disk + there:
        large = sorted(rows, key=lambda row: -row.disk)[:2]
        most = " and ".join(f"{row.rule} {gb(row.disk)} GB" for row in large)
        most += f"; shards' moments before they are summed {gb(sums)} GB" * (sums > 0)
        room = machine.disk + there
        found.append(
            f"disk: its files take {gb(disk)} GB, and there is room for {gb(room)} (the most: "
            f"{most}); moments: {{store: bfloat16}} halves second moments"
        )
    return found


def duration(spent: float) -> str:
    if spent < 90:
        return f"{spent:.0f} s"
    return f"{spent / 60:.0f} min" if spent < 5400 else f"{spent / 3600:.1f} h"


def line(row: Step) -> str:
    sizes = f"{row.ram / GB:12.1f}{row.gpu / GB:9.1f}{row.disk / GB:10.2f}"
    return f"{row.rule:24}{row.jobs:5}{duration(row.seconds):>9}{sizes}"


def words(
    config: Mapping[str, Any], shapes: Mapping[str, Shape], machine: Machine, rows: list[Step], unfit: list[str]
) -> str:
    """The plan as a text."""
    rates, on_gpu = machine.rates, machine.device != "cpu"
    lines = ["It does not fit:", *(f"  {each}" for each in unfit)] if unfit else ["It fits."]
    lines += [
        "",
        f"{machine.name}: {rates.model / 1e12:.3g} TFLOP/s in the model's type, {rates.float32 / 1e12:.3g} in float32",
        f"memory {machine.ram / GB:.0f} GB{f', of the GPU {machine.gpu / GB:.0f} GB' if on_gpu else ''}; files "
        f"{rates.disk / GB:.2g} GB/s written, {rates.read / GB:.2g} read, {machine.disk / GB:.0f} GB free",
    ]
    for model, shape in shapes.items():
        lines.append(
            f"{model}: {shape.weights / 1e6:,.0f} million weights in {shape.depth} blocks, "
            f"{megabytes(stored(shape) / 1e6)} MB; second moments {megabytes(moments(shape, config) / 1e6)} MB"
        )
    total = Step(
        "in all, one by one",
        sum(row.jobs for row in rows),
        sum(row.seconds for row in rows),
        max(row.ram for row in rows),
        max(row.gpu for row in rows),
        sum(row.disk for row in rows),
    )
    lines += ["", f"{'step':24}{'jobs':>5}{'time':>9}{'memory, GB':>12}{'GPU, GB':>9}{'disk, GB':>10}"]
    return "\n".join([*lines, *map(line, rows), line(total)]) + "\n"
