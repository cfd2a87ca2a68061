"""What a job takes is known before it runs: shapes against models, memory against measured peaks, and what is asked."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quant.methods.refusals import moment_mistakes
from quant.workflow.estimates import needs
from quant.workflow.estimates.amounts import MB, Ask, Estimate, is_packed, moments
from quant.workflow.estimates.jobs import OF_MODEL
from quant.workflow.estimates.rates import AHEAD, BOTH, WARM, Rates, measure_rates, seconds, within
from quant.workflow.estimates.shape import Shape, moment_numbers
from tests.tiny import ROOT
from tests.unit.workflow.configurations import LLAMA3, LLAMA3_70B

SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "dtype": "float16",
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
MINICPM = {
    "model_type": "granite", "hidden_size": 2304, "intermediate_size": 5760, "num_hidden_layers": 40,
    "num_attention_heads": 36, "num_key_value_heads": 36, "vocab_size": 122753, "tie_word_embeddings": True,
    "dtype": "bfloat16",
}  # fmt: skip
OTHERS: list[dict[str, Any]] = [
    {"model_type": "qwen3_moe", "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 24,
     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 6,
     "num_experts_per_tok": 2, "vocab_size": 96, "decoder_sparse_step": 1, "mlp_only_layers": []},
    {"model_type": "mixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
     "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
     "vocab_size": 96},
    {"model_type": "opt", "hidden_size": 32, "ffn_dim": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
     "vocab_size": 96, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    {"model_type": "gpt_neox", "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2,
     "num_attention_heads": 4, "vocab_size": 96},
    {"model_type": "llama", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
     "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96},
]  # fmt: skip


def shape_of(config: dict[str, Any]) -> Shape:
    found = Shape.of(config)
    assert found is not None
    return found


@pytest.mark.parametrize("said", OTHERS, ids=lambda said: said["model_type"])
def test_a_shape_has_the_linears_of_its_model(said: dict[str, Any], tmp_path: Path) -> None:
    from quant.models.structure.linears import all_linears, skeleton

    (tmp_path / "config.json").write_text(json.dumps(said))
    model, found = skeleton(tmp_path), shape_of(said)
    weights = [model.get_parameter(f"{name}.weight").numel() for name in all_linears(model)]
    assert (sum(weights), max(weights) >= found.largest) == (found.quantised, True)


def test_known_models() -> None:
    assert shape_of(SMOLLM2).weights == pytest.approx(134.5e6, rel=0.001)
    assert shape_of(LLAMA3).weights == pytest.approx(8.03e9, rel=0.001)
    assert 4 * moment_numbers(shape_of(SMOLLM2)) == pytest.approx(201e6, rel=0.01)  # of 202 MB on disk
    assert Shape.of({"model_type": "mystery"}) is None


def test_a_number_for_each_block_is_the_largest() -> None:
    """As Gemma 3n's MLPs have it; what is no number is not said."""
    several = {"intermediate_size": [512, 1536, 768], "num_key_value_heads": [3] * 30, "head_dim": None}
    assert shape_of(SMOLLM2 | several) == shape_of(SMOLLM2)
    assert shape_of(SMOLLM2 | {"head_dim": "64", "moe_intermediate_size": {}}) == shape_of(SMOLLM2)
    assert Shape.of(SMOLLM2 | {"hidden_size": []}) is Shape.of(SMOLLM2 | {"hidden_size": math.nan}) is None


# MB at their peak: resident sets of the default study on 2 cores, SmolLM2-135M
CPU = {
    ("collect_statistics", ""): 1370, ("evaluate_original", ""): 1177, ("evaluate", "gw_awq"): 1232,
    ("evaluate", "rtn_g"): 1514, ("quantize", "gw_awq"): 733, ("quantize", "rtn_g_sym"): 547,
    ("measure_error", "gw_awq"): 889, ("measure_sensitivity", "rtn_g"): 1467, ("check_mse", ""): 1012,
    ("convert", ""): 897, ("check_study", ""): 352, ("analyse_preactivations", ""): 541,
}  # fmt: skip
# of the card: random models of Llama 3's shapes on an H200, 128 × 512 tokens in groups of 128; blocks
LLAMAS = {
    (8, 4, "collect_statistics", ""): 4040, (8, 4, "quantize", "gw_awq"): 2940,
    (70, 8, "collect_statistics", ""): 12150, (70, 8, "quantize", "awq_clip_gptq"): 14400,
    (70, 8, "quantize_with_model", "frontier_fast"): 17960, (8, 32, "collect_statistics", ""): 4150,
}  # fmt: skip
# of the card: MiniCPM-2B's shape on an H200, the same
GPU = {
    ("collect_statistics", ""): 2010, ("quantize", "gw_awq_flip"): 1090, ("quantize", "awq_clip"): 990,
    ("quantize", "gptq"): 790, ("quantize_with_model", "frontier"): 23000,
}  # fmt: skip
# of the host, its mapped files 8 GB at most: on an H200's host, in one process
HOSTS = {
    (8, 32, "quantize", "gw_awq"): 13081, (8, 32, "quantize_with_model", "frontier_fast"): 13253,
    (2, 10, "quantize", "gw_awq"): 5659, (2, 10, "quantize", "gptq"): 5537,
    (2, 10, "quantize_with_model", "frontier_fast"): 7507,
}  # fmt: skip


def ask(config: dict[str, Any], model: dict[str, Any], method: str, on_gpu: bool) -> Ask:
    wildcards = {"dataset": "python_reference"} | ({"method": method} if method else {})
    return Ask(shape_of(model), config, wildcards, on_gpu)


def test_memory_is_near_measured_peaks_on_two_sizes(config: dict[str, Any]) -> None:
    """Never under by more than what a job asks beyond its estimate, and not twice as much."""
    ratios = {key: OF_MODEL[key[0]](ask(config, SMOLLM2, key[1], False)).ram / MB / peak for key, peak in CPU.items()}
    large = config | {"calibration": config["calibration"] | {"n_calib": 128}}
    for key, peak in GPU.items():
        ratios[(*key, "gpu")] = OF_MODEL[key[0]](ask(large, MINICPM, key[1], True)).gpu / MB / peak
    for (size, depth, rule, method), peak in LLAMAS.items():
        model = (LLAMA3 if size == 8 else LLAMA3_70B) | {"num_hidden_layers": depth}
        ratio = OF_MODEL[rule](ask(large, model, method, True)).gpu / MB / peak
        assert 0.8 < ratio < 1.25, (size, rule, method, ratio)
    for (size, depth, rule, method), peak in HOSTS.items():
        model = (LLAMA3 if size == 8 else MINICPM) | {"num_hidden_layers": depth}
        ratio = OF_MODEL[rule](ask(large, model, method, True)).ram / MB / peak
        assert 0.8 < ratio < 1.25, (size, rule, method, ratio)
    assert {key: ratio for key, ratio in ratios.items() if not 1 / needs.SPARE < ratio < 1.45} == {}


def test_a_gguf_file_is_in_float32_before_the_model_has_it(config: dict[str, Any]) -> None:
    more = config | {"study": config["study"] | {"gguf": ["rtn_g"]}}
    for method, grown in (("rtn_g", 4 * shape_of(SMOLLM2).weights), ("gw_awq", 0)):
        found = [OF_MODEL["evaluate"](ask(each, SMOLLM2, method, True)).ram for each in (config, more)]
        assert found[1] - found[0] == grown


# wall seconds in one process on an H200 (docs/results.md)
QWEN3 = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "vocab_size": 151936, "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip
# with what the machine wrote and read, GB/s, and took for an operation, µs
SECONDS: list[tuple[dict[str, Any], int, tuple[float, float, float], str, str, float]] = [
    (LLAMA3_70B, 2, (1.5, 5.8, 17.9), "collect_statistics", "", 5.0),
    (LLAMA3_70B, 2, (1.5, 5.8, 17.9), "quantize", "awq_clip_gptq", 8.7),
    (LLAMA3_70B, 2, (1.5, 5.8, 17.9), "quantize_with_model", "frontier_fast", 28.4),
    (LLAMA3_70B, 8, (1.1, 3.5, 17.9), "collect_statistics", "", 16.3),
    (LLAMA3_70B, 8, (2.1, 7.6, 20.9), "collect_statistics", "", 11.5),
    (LLAMA3_70B, 8, (2.1, 7.6, 20.9), "quantize", "awq_clip_gptq", 24.9),
    (LLAMA3_70B, 8, (2.1, 7.6, 20.9), "quantize_with_model", "frontier_fast", 94.3),
    (LLAMA3, 32, (2.6, 8.3, 17.1), "collect_statistics", "", 8.4),
    (LLAMA3, 32, (2.6, 8.3, 17.1), "quantize", "gw_awq", 10.4),
    (LLAMA3, 32, (2.6, 8.3, 17.1), "quantize_with_model", "frontier_fast", 65.6),
    (QWEN3, 2, (2.2, 5.8, 17.9), "collect_statistics", "", 7.6),
    (QWEN3, 2, (2.2, 5.8, 17.9), "quantize", "gw_awq", 7.7),
    (MINICPM, 10, (1.5, 5.8, 17.9), "quantize_with_model", "frontier_fast", 6.6),
    (MINICPM, 40, (1.5, 5.8, 17.9), "collect_statistics", "", 4.1),
    (MINICPM, 40, (1.5, 5.8, 17.9), "collect_noisy", "", 4.4),
    (MINICPM, 40, (2.6, 5.8, 17.9), "quantize", "full_awq", 3.9),
    (MINICPM, 40, (2.6, 5.8, 17.9), "quantize", "full_praq", 3.5),
    (MINICPM, 40, (2.6, 5.8, 17.9), "quantize", "gw_awq_flip", 3.4),
    (MINICPM, 40, (2.1, 5.0, 30.6), "collect_statistics", "", 5.5),
    (MINICPM, 40, (2.1, 5.0, 30.6), "quantize_with_model", "frontier", 91.9),
]


def test_seconds_are_near_measured_ones(config: dict[str, Any]) -> None:
    """Where they are more than a few, which is what a plan is for."""
    large = config | {"calibration": config["calibration"] | {"n_calib": 128, "seq_len": 512}}
    large["methods"] = {name: recipe | {"n_calib": 128} for name, recipe in config["methods"].items()}
    for model, depth, (disk, read, call), rule, method, measured in SECONDS:
        found = OF_MODEL[rule](ask(large, model | {"num_hidden_layers": depth}, method, True))
        planned = within(
            found, Rates(740e12, 51e12, 4e12, 54e9, disk * 1e9, read * 1e9, 1e9, call * 1e-6, 0.05), "cuda"
        )
        assert 0.75 < planned / measured < 1.25, (model["model_type"], depth, rule, method, planned, measured)


def test_the_slowest_of_reading_work_and_writing_is_waited_for_and_of_the_others_a_block() -> None:
    rates = Rates(model=1.0, float32=1.0, copy=1.0, off=1e9, disk=2.0, read=4 * AHEAD, cold=1.0, call=1e-9, python=0.1)
    found = Estimate(moved=30.0, read=40.0, written=40.0, blocks=10, before=8.0 * AHEAD)  # 30, 10 and 20 s
    assert within(found, rates, "cuda") == pytest.approx(2 + 30 + (10 + 20) / 10 + BOTH * 10, abs=1e-6)
    more = within(found._replace(written=400.0), rates, "cuda")
    assert more == pytest.approx(2 + 200 + 40 / 10 + BOTH * 10, abs=1e-6)
    of_cpu = within(found, rates._replace(read=4.0), "cpu")  # which reads for itself
    assert of_cpu == pytest.approx(2 * AHEAD + 30 + 10 + 20 / 10, abs=1e-6)
    assert within(found._replace(carried=50e9), rates, "cuda") > within(found, rates, "cuda")  # slower than the work
    assert within(found._replace(carried=20e9), rates, "cuda") == within(found, rates, "cuda")
    of_job = seconds(found._replace(start=5.0), rates, "cuda") - within(found, rates, "cuda")
    assert of_job == pytest.approx(10 + WARM, rel=1e-6)  # where Python takes twice as long


def test_rates_are_of_this_machine(tmp_path: Path) -> None:
    found = measure_rates("cpu", "float32", tmp_path)
    assert all(0 < value < 1e15 for value in found) and found.call < 0.01 and list(tmp_path.iterdir()) == []


def test_moments_are_known_before_the_first_job(config: dict[str, Any]) -> None:
    """bfloat16 halves them, a budget pools experts', and a dense model beyond it is refused with the number."""
    half = config | {"moments": {"store": "bfloat16", "budget_gb": 100}}
    large, mixture = shape_of(LLAMA3), shape_of(OTHERS[0])
    assert moments(large, config) == 2 * moments(large, half) == pytest.approx(16.5e9, rel=0.01)
    least = moments(mixture, config | {"moments": {"store": "float32", "budget_gb": 0}})
    assert least < moments(mixture, config) / 2
    said = list(moment_mistakes({"store": "float32", "budget_gb": 9}, LLAMA3))
    assert len(said) == 1 and "take 16.4 GB" in said[0] and "bfloat16" in said[0]
    assert list(moment_mistakes({"store": "bfloat16", "budget_gb": 9}, LLAMA3)) == []
    assert list(moment_mistakes({"store": "float32", "budget_gb": 0}, {"model_type": "mystery"})) == []


def test_disk_is_what_files_take(config: dict[str, Any]) -> None:
    """Of the default study, MB on disk."""
    disk = {
        rule: OF_MODEL[rule](ask(config, SMOLLM2, method, False)).disk / MB
        for rule, method in (
            ("collect_statistics", ""),
            ("convert", ""),
            ("quantize", "rtn_g"),
            ("evaluate_original", ""),
        )
    }
    assert disk == pytest.approx(
        {"collect_statistics": 286.8, "convert": 269.1, "quantize": 114.0, "evaluate_original": 19.6}, rel=0.03
    )
    assert is_packed(config["methods"]["awq_clip_gptq_shared"]) and not is_packed(config["methods"]["gw_awq"])


def test_what_a_job_asks_for_grows_with_its_model_and_on_retries(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = needs.resources(config, lambda: True)
    wildcards = SimpleNamespace(items={"model": "smollm2-135m", "dataset": "python_reference"}.items)

    def memory(rule: str, attempt: int = 1) -> int:
        return asked["mem_mb"](wildcards, attempt, rule)

    assert memory("evaluate_original") == 3000 and memory("convert") == 4000  # nothing is known of it
    folder = tmp_path / "results/smollm2-135m/original/checkpoint"
    folder.mkdir(parents=True)
    found = {}
    for name, model in (("small", SMOLLM2), ("large", LLAMA3)):
        (folder / "config.json").write_text(json.dumps(model))
        found[name] = memory("evaluate_original")
        assert memory("evaluate_original", 2) == 2 * found[name]
        assert {asked[key](wildcards, 1, "report") for key in ("mem_mb", "disk_mb")} == {1000}
    assert found["small"] < 6000 < 8000 < found["large"] < 60000
    assert needs.needs("evaluate_original", {"dataset": "docstrings"}, config, shape_of(LLAMA3), True)["disk_mb"] <= 100
    assert needs.needs("collect_statistics", {}, config, shape_of(LLAMA3), False)["runtime"] > 120


def test_longer_jobs_come_first_by_the_doubling_whether_or_not_their_model_is_known(config: dict[str, Any]) -> None:
    def step(rule: str, method: str, shape: Shape | None, on_gpu: bool = True) -> float:
        return needs.DOUBLINGS * needs.longer(rule, {"method": method}, config, shape, on_gpu)

    llama = shape_of(LLAMA3)
    for on_gpu in (True, False):
        known = [step("quantize", "rtn_g", llama, on_gpu), step("quantize", "gptq", llama, on_gpu)]
        assert known == sorted(known) and all(each == int(each) for each in known)
        assert step("quantize_with_model", "frontier_fast", llama, on_gpu) > known[1]
        assert step("quantize", "gptq", shape_of(SMOLLM2), on_gpu) < known[1]
        assert step("quantize_with_model", "frontier_fast", None, on_gpu) > step("quantize", "gptq", None, on_gpu) > 10
    assert needs.longer("quantize_shard", {"method": "gptq"}, config, None, True) < 1


def test_every_rule_asks_for_what_it_needs() -> None:
    import re

    texts = [path.read_text() for path in (ROOT / "rules").glob("*.smk")]
    rules = [rule for text in texts for rule in re.split(r"^rule ", text, flags=re.MULTILINE)[1:]]
    assert len(rules) > 30 and [rule[:30] for rule in rules if "**NEEDS" not in rule] == []
    names = [rule.partition(":")[0] for rule in rules if "gpu=GPU" in rule]
    asking = {needs.PART_OF.get(name, name) for name in names}
    assert asking - needs.PART_OF.keys() == needs.ON_GPU and {"plan", *OF_MODEL} >= needs.ON_GPU
