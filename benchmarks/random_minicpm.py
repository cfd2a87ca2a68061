"""A random MiniCPM-2B as openbmb/MiniCPM-2B-sft-bf16 is published: random_minicpm.py FOLDER TEXT [--layers 40 …].

pytorch_model.bin in bfloat16 with the head in the embeddings' storage, config.json with auto_map, the modules it names
(which end whatever runs them), and a small byte-level BPE trained on the start of TEXT. The study of it, on a GPU:

    python benchmarks/random_minicpm.py /tmp/minicpm wikitext-2-raw-test.txt
    snakemake results/report.html --configfile benchmarks/random_minicpm.yaml --cores all --resources gpu=3
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def save_tokenizer(folder: Path, text: str, size: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "<s>", "</s>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(text.splitlines(keepends=True), trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    saved = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    saved.save_pretrained(folder)


def config_of(hidden: int, layers: int, vocabulary: int) -> dict[str, Any]:
    """config.json, with the published one's keys and multipliers."""
    module = "modeling_minicpm.MiniCPM"
    return {
        "architectures": ["MiniCPMForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_minicpm.MiniCPMConfig",
            "AutoModel": f"{module}Model",
            "AutoModelForCausalLM": f"{module}ForCausalLM",
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.1,
        "intermediate_size": hidden * 5 // 2,
        "max_position_embeddings": 2048,
        "model_type": "minicpm",
        "num_attention_heads": hidden // 64,
        "num_hidden_layers": layers,
        "num_key_value_heads": hidden // 64,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": vocabulary,
        "scale_emb": 12,
        "dim_model_base": 256,
        "scale_depth": 1.4,
    }


def weights(config: dict[str, Any], where: str) -> dict[str, Tensor]:
    """By their published names, with loud input channels, and gates that SiLU silences."""
    generator = torch.Generator(where).manual_seed(0)
    hidden, inner = config["hidden_size"], config["intermediate_size"]

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=where)

    def some(n: int, share: int) -> Tensor:
        return torch.randint(n, (max(1, n // share),), generator=generator, device=where)

    def norm() -> Tensor:
        weight = (0.3 * draw(hidden)).exp()
        weight[some(hidden, 200)] *= 8
        return weight

    common = draw(hidden).sign()  # a direction that all tokens share, so that some outputs have a mean far from 0
    state = {"model.embed_tokens.weight": 0.1 * draw(config["vocab_size"], hidden) + 0.04 * common}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, size in (("q", 0.5), ("k", 0.5), ("v", 1.0), ("o", 1.0)):
            state[f"{layer}.self_attn.{name}_proj.weight"] = size * draw(hidden, hidden) * hidden**-0.5
        gate, up = (draw(inner, hidden) * hidden**-0.5 for _ in range(2))
        gate[some(inner, 10)] -= 10 / hidden * common
        up[some(inner, 100)] *= 4
        state |= {f"{layer}.mlp.gate_proj.weight": gate, f"{layer}.mlp.up_proj.weight": up}
        state[f"{layer}.mlp.down_proj.weight"] = draw(hidden, inner) * inner**-0.5
        state |= {f"{layer}.{name}_layernorm.weight": norm() for name in ("input", "post_attention")}
        state = {name: value.to("cpu", torch.bfloat16) for name, value in state.items()}
    # under 1, so that the tied head does not repeat the input token with certainty
    state["model.norm.weight"] = (0.6 * (0.3 * draw(hidden)).exp()).to("cpu", torch.bfloat16)
    return state | {"lm_head.weight": state["model.embed_tokens.weight"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--hidden", type=int, default=2304, help="a multiple of 64")
    parser.add_argument("--vocabulary", type=int, default=122753)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(options.text, options.folder / "text.txt")
    config = config_of(options.hidden, options.layers, options.vocabulary)
    (options.folder / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("configuration_minicpm.py", "modeling_minicpm.py"):
        (options.folder / name).write_text("raise SystemExit('remote code was run')\n")
    text = options.text.read_text(encoding="utf-8")[:200_000]
    save_tokenizer(options.folder, text, min(4096, options.vocabulary))
    begun, where = time.perf_counter(), "cuda" if torch.cuda.is_available() else "cpu"
    state = weights(config, where)
    torch.save(state, options.folder / "pytorch_model.bin")
    count = sum(value.numel() for name, value in state.items() if name != "lm_head.weight")
    print(f"{options.folder}: {count / 1e9:.3f} billion weights, {time.perf_counter() - begun:.1f} s on {where}")


if __name__ == "__main__":
    main()
