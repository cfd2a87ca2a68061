"""Memory and disk of a mixture's statistics, a block: experts.py [--experts 128 --hidden 2048 --mlp 768 …].

A random Qwen3-MoE of two blocks, Qwen3-30B-A3B's shape unless another is asked for; collects its statistics once, and
sets the files' sizes and, on a GPU, the peak of its memory beside what their formulas give and the limits of 8 GiB and
4 GB a block.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow_scripts"))

from bench_models import random_tokens
from quant.calibration.expert_moments import Keeping, kinds
from quant.calibration.material import Material
from quant.calibration.moment_sizes import triangle_bytes
from quant.calibration.statistics import collect
from quant.files import tensorfile
from quant.files.artifacts import write_plain_json
from quant.files.units import megabytes
from quant.models.structure.linears import decoder_blocks, skeleton
from quant.runtime.compute import Compute, batch_tokens, device

BLOCKS = 2
GPU_LIMIT, DISK_LIMIT = 8 * 2**30, 4e9  # bytes, a block
VOCABULARY = 2048


def make_model(folder: Path, options: argparse.Namespace, dtype: str, where: str) -> Path:
    """As convert writes one: experts one by one, weights of variance 1/in."""
    from transformers import Qwen3MoeConfig

    heads = max(1, options.hidden // 64)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY, hidden_size=options.hidden, intermediate_size=options.mlp, head_dim=64,
        moe_intermediate_size=options.mlp, num_experts=options.experts, num_experts_per_tok=options.active,
        num_hidden_layers=BLOCKS, num_attention_heads=heads, num_key_value_heads=max(1, heads // 8),
        max_position_embeddings=4096, tie_word_embeddings=True, norm_topk_prob=True,
    )  # fmt: skip
    written = config.to_dict() | {"architectures": ["Qwen3MoeForCausalLM"], "dtype": dtype}
    write_plain_json(folder / "config.json", written)
    generator = torch.Generator(where).manual_seed(0)
    model = skeleton(folder)
    layout = {
        name: (getattr(torch, dtype), tuple(value.shape))
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    with tensorfile.writing(folder / "model.safetensors", layout, {"format": "pt"}) as out:
        for name, (kind, shape) in layout.items():
            drawn = torch.randn(shape, generator=generator, device=where)
            out.put(name, (1 + drawn / 10 if len(shape) == 1 else drawn * shape[1] ** -0.5).to(kind))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "experts": 128,
        "active": 8,
        "hidden": 2048,
        "mlp": 768,
        "sequences": 128,
        "width": 512,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--moments-gb", type=float, help="for all experts together; default: as many as they take")
    parser.add_argument("--folder", type=Path, help="where model and statistics go; default: a temporary directory")
    options = parser.parse_args()
    where = device("auto")
    dtype = "bfloat16" if where == "cuda" else "float32"
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        checkpoint = make_model(folder / "model", options, dtype, where)
        tokens = random_tokens(folder / "tokens", options.sequences, options.width, VOCABULARY, 1)
        compute = Compute(where, getattr(torch, dtype), batch_tokens("auto", where))
        files = [folder / key for key in ("channels", "moments", "preactivations")]
        if where == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        material = Material(checkpoint, tokens, {"model_fingerprint": "experts"})
        collect(material, files[0], files[1], compute, files[2], Keeping(budget_gb=options.moments_gb))
        spent = time.perf_counter() - begun
        block = decoder_blocks(skeleton(checkpoint))[1][0]
        on_disk = sum(file.stat().st_size for file in files) / BLOCKS
        with tensorfile.opened(files[1]) as moments:
            lent = len(moments.info("lent"))
    found = kinds(block)
    stored = sum(len(kind.readers) * triangle_bytes(kind.width) for kind in found)
    sums = sum(4 * len(kind.readers) * kind.width**2 for kind in found)
    weights = sum(parameter.numel() for parameter in block.parameters()) * getattr(torch, dtype).itemsize
    print(f"{spent / BLOCKS:.1f} s a block on {torch.cuda.get_device_name() if where == 'cuda' else 'a CPU'}")
    print(f"disk a block: {megabytes(on_disk / 1e6)} MB, limit {megabytes(DISK_LIMIT / 1e6)}")
    print(f"of it every expert's own moments: {megabytes(stored / 1e6)} MB")
    print(f"experts lent their layer's moment: {lent // BLOCKS} of {sum(len(kind.readers) for kind in found)} a block")
    print(f"in memory a block: sums {megabytes(sums / 1e6)} MB, weights {megabytes(weights / 1e6)} MB ({dtype})")
    failed = on_disk > DISK_LIMIT
    if where == "cuda":
        peak = torch.cuda.max_memory_allocated()
        print(f"GPU memory at its peak: {peak / 2**30:.3f} GiB, limit {GPU_LIMIT / 2**30:g}")
        failed |= peak > GPU_LIMIT
    sys.exit("over a limit" if failed else None)


if __name__ == "__main__":
    main()
