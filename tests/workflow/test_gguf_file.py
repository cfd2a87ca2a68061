"""A GGUF file in its checkpoint's place, through the real workflow."""

from pathlib import Path

import pytest
import torch

from quant.files.csv_tables import read_table
from tests import tiny

pytestmark = pytest.mark.slow

METHODS = {"file": {"bits": 8, "symmetric": True}, "packed": {"bits": 4}}
OVERLAY = tiny.with_methods(METHODS)
OVERLAY |= {
    "study": OVERLAY["study"] | {"gguf": ["file"], "tasks": ["word"]},
    "tasks": {"word": {"embedded": "last_word", "n_items": 8}},
    "defaults": OVERLAY["defaults"] | {"group_size": 32},
    "choose": {"max_bits_per_weight": None, "by": "kl"},
}


def test_it_is_what_is_measured_asked_weighed_and_taken(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny.clone(tmp_path)
    model = tiny.save_model(folder / "inputs/model", hidden_size=64, intermediate_size=96)
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float16).save_pretrained(model)
    tiny.save_byte_tokenizer(model)
    tiny.write_overlay(folder, OVERLAY)
    answers = "results/tiny/file/tasks/word.json"
    done = tiny.snakemake(folder, "results/best/choice.json", answers)
    assert done.returncode == 0, done.stdout + done.stderr
    made = folder / "results/tiny/file/export/gguf/model.gguf"
    row = read_table(folder / "results/summary.csv").set_index("method").loc["file"]
    assert (row.storage, row.size_mb, row.bits_per_weight) == ("gguf", made.stat().st_size / 1e6, 8.5)
    choice = tiny.read(folder / "results/best/choice.json")
    assert (choice["path"], choice["copy"]) == ("results/tiny/file/export/gguf/model.gguf", "results/best/model.gguf")
    assert (folder / "results/best/model.gguf").read_bytes() == made.read_bytes()
    assert f"Take {folder}/results/best/model.gguf" in done.stderr
    before = tiny.read(folder / "results/tiny/file/evaluation/heldout.json"), tiny.read(folder / answers)
    tiny.write_overlay(folder, OVERLAY | {"study": OVERLAY["study"] | {"gguf": []}})
    jobs = tiny.pending(folder)
    assert jobs["evaluate"] == 1 <= jobs["evaluate_task"] and not jobs.keys() & {"export_gguf", "quantize"}
    done = tiny.snakemake(folder, "results/best/choice.json", answers)
    assert done.returncode == 0, done.stdout + done.stderr
    after = tiny.read(folder / "results/tiny/file/evaluation/heldout.json"), tiny.read(folder / answers)
    assert after[0]["storage"] == "packed" and not (folder / "results/best/model.gguf").exists()
    assert before[0]["kl"] == pytest.approx(after[0]["kl"], rel=1e-3) and before[0]["kl"] > 0
    scores = [[each["right_log_p"] for each in found["items"]] for _, found in ((0, before[1]), (1, after[1]))]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
