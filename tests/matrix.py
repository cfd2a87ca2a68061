"""A tiny random model of every causal type that transformers knows, from its configuration's own words made small, and
its way through the whole chain.

    python -m tests.matrix docs/models.md    tries every type and writes what became of it
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from quant.errors import InputError
from tests.unit.recipe.cases import PLAIN

SMALL: dict[str, Any] = {
    name: value
    for value, names in (
        (256, """
            vocab_size padded_vocab_size vocab_size_per_layer_input encoder_hash_byte_group_vocab
        """),
        (32, """
            hidden_size d_model n_embd embed_dim dim embedding_size word_embed_proj_dim hidden_dim model_dim
        """),
        (64, """
            intermediate_size ffn_dim n_inner d_ff feed_forward_size encoder_ffn_dim decoder_ffn_dim
            dim_feedforward intermediate_dim d_inner dff mamba_intermediate ffn_hidden_size block_ff_dim
            ffn_size prefix_dense_intermediate_size mamba_d_ssm
        """),
        (16, """
            moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size
            moe_shared_expert_intermediate_size expert_intermediate_size q_lora_rank kv_lora_rank
            intermediate_size_mlp hidden_size_per_layer_input expert_ffn_hidden_size moe_latent_size
            sliding_window attention_window_size window_size local_attention_window index_head_dim o_lora_rank
            zoneout mamba_d_head mamba_head_dim
        """),
        (2, """
            num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers depth
            num_key_value_heads n_kv_heads num_kv_heads num_experts_per_tok num_experts_per_token top_k moe_topk
            moe_top_k num_global_key_value_heads num_key_value_groups mamba_n_groups n_groups
            linear_num_key_heads eos_token_id
        """),
        (1, """
            first_k_dense_replace n_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts
            num_dense_layers num_nextn_predict_layers moe_layer_start_index ngroups bos_token_id
            decoder_start_token_id
        """),
        (4, """
            num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads
            num_experts num_local_experts n_routed_experts moe_num_experts num_query_heads index_n_heads
            linear_num_value_heads mamba_n_heads mamba_num_heads
        """),
        (8, """
            head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim rotary_dim global_head_dim attention_head_dim
            kv_channels linear_key_head_dim linear_value_head_dim mamba_d_state mamba_state_size state_size
            ssm_state_size head_size mamba_dt_rank time_step_rank
        """),
        (128, """
            max_position_embeddings n_positions max_sequence_length max_seq_len n_ctx
            original_max_position_embeddings
        """),
        (0, """
            num_kv_shared_layers pad_token_id
        """),
        (0.0, """
            attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop dropout hidden_dropout_prob
            attention_probs_dropout_prob activation_dropout layerdrop residual_dropout embedding_dropout
            summary_first_dropout
        """),
    )
    for name in names.split()
}  # fmt: skip


def shrunk(cls: Any, own: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a tiny configuration of a class, those of its parts within them."""
    default = cls()
    known = (set(default.to_dict()) | set(cls.attribute_map)) - set(cls.sub_configs)
    small = {key: value for key, value in SMALL.items() if key in known}
    for name, part in cls.sub_configs.items():
        found = getattr(default, name, None)
        part = type(found) if hasattr(found, "to_dict") else part
        if hasattr(part, "sub_configs"):
            small[name] = shrunk(part, {}) | own.get(name, {})
            if hasattr(found, "model_type") and "model_type" in found.to_dict():
                small[name]["model_type"] = found.model_type
    if "kv_lora_rank" in known and "num_key_value_heads" in known:  # latent attention has no groups of queries
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small | {key: value for key, value in own.items() if key not in cls.sub_configs}


OWN: dict[str, dict[str, Any]] = {
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"head_dim": 8, "qk_head_dim": 16, "zero_expert_num": 2},
    "inkling_text": {"swa_head_dim": 8, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2},
    "kimi_linear": {
        "q_lora_rank": None, "linear_head_dim": 8, "linear_num_heads": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4}, "ffn_config": {"moe_num_experts": 4, "moe_top_k": 2}},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "moe", "mlp"], "num_hidden_layers": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "mpt": {"attn_config": {"attn_pdrop": 0}},
    "zamba": {
        "num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"], "num_key_value_heads": 4,
        "attention_head_dim": 16, "n_mamba_heads": 2,
    },
    "zamba2": {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"], "num_mem_blocks": 1},
    "roc_bert": {"is_decoder": True, "pronunciation_vocab_size": 16, "shape_vocab_size": 16},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX", "is_decoder": True},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def config(kind: str) -> Any:
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[kind]
    return cls(**shrunk(cls, OWN.get(kind, {})))


def kinds() -> list[str]:
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    return [kind for kind in CONFIG_MAPPING if CONFIG_MAPPING[kind] in MODEL_FOR_CAUSAL_LM_MAPPING]


def build(kind: str) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(kind)).float().eval()


RECIPE: dict[str, Any] = PLAIN | {"group_size": 8, "symmetric": True, "n_grid": 3}
METHODS = {
    "rtn_g": {},
    "gptq": {"rounding": "gptq"},
    "awq_shared": {"salience": "l2", "scope": "shared"},
}
PATTERNS = {
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj", "qkv", "out_proj", "attention"],
    "mlp": ["mlp", "fc", "gate", "up_proj", "down_proj", "ffn"],
}


def sequences(n: int = 8, seed: int = 0) -> list[Any]:

    generator = torch.Generator().manual_seed(seed)
    lengths = [24, 24, 17, 24, 9, 24, 24, 13][:n]
    return [torch.randint(3, 256, (length,), generator=generator) for length in lengths]


def logits(checkpoint: Path) -> Any:
    """What plain transformers says of a checkpoint, sequence by sequence."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(input_ids=ids[None], use_cache=False).logits[0] for ids in sequences(2)]


def close(a: Any, b: Any, what: str, tolerance: float = 2e-4, nothing: bool = False) -> None:
    """Alike within a share of the largest; nothing: whether that may be 0."""

    for mine, theirs in zip(a, b, strict=True):
        scale = theirs.abs().max().item()
        assert torch.isfinite(mine).all() and (scale > 0 or nothing), f"{what}: not finite, or nothing"
        assert (mine - theirs).abs().max().item() <= tolerance * scale, (
            f"{what}: {(mine - theirs).abs().max()} of {scale}"
        )


def walk(kind: str, folder: Path) -> dict[str, Any]:
    """A tiny model of a type through the whole chain; what it found, or the InputError that refuses it."""

    from quant.calibration.material import Material
    from quant.calibration.statistics import collect
    from quant.data.tokens import Tokens, fingerprint
    from quant.models.conversion.convert import convert
    from quant.runtime.compute import Compute
    from tests import tiny
    from tests.conftest import perturb

    torch.manual_seed(0)
    model = build(kind)
    perturb(model, 1)
    model.save_pretrained(folder / "source")
    tiny.save_byte_tokenizer(folder / "source")
    original, record_path = folder / "results/original/checkpoint", folder / "results/original/convert.json"
    convert({"directory": str(folder / "source")}, original, record_path)
    close(logits(original), logits(folder / "source"), "converted")
    record = tiny.read(record_path)
    ids = sequences()
    tokens = Tokens(ids, fingerprint(ids), {})
    files = {name: str(folder / f"{name}.safetensors") for name in ("channels", "moments")}
    made = {"model_fingerprint": record["fingerprint"]}
    collect(
        Material(original, tokens, made),
        files["channels"],
        files["moments"],
        Compute("cpu", torch.float32, 60),
        str(folder / "pre.safetensors"),
    )
    check_moments(original, ids, files["moments"], record["linears"])
    done = {}
    for method, changes in METHODS.items():
        try:
            done[method] = quantized(folder, method, RECIPE | changes, record, files)
        except InputError as error:
            if "scope: shared" not in str(error):
                raise
            done[method] = {"refused": str(error)}
    return {"record": record, **done}


def check_moments(checkpoint: Path, ids: list[Any], path: str, linears: dict[str, int]) -> None:
    """Every linear's second moment is that of what it reads in the whole model, one sequence at a time."""
    from transformers import AutoModelForCausalLM

    from quant.calibration.second_moments import from_triangle
    from quant.files import tensorfile
    from quant.models.structure.experts import routing, unroll

    model = unroll(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval())
    experts = {
        f"{path}.{leaf}" for path, module in routing(model).items() for i in range(module.num_experts)
        for leaf, _ in module.linears(i)
    }  # fmt: skip
    seen: dict[str, list[Any]] = {name: [] for name in linears}
    for name in linears:
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen[name].append(args[0].flatten(0, -2).double())
        )
    with torch.inference_mode():
        said = [model(input_ids=sequence[None], use_cache=False).logits[0] for sequence in ids]
    close(said[:2], logits(checkpoint), "unrolled")
    with tensorfile.opened(path) as file:
        reads = file.info("reads")
        for name in linears:
            x = torch.cat(seen[name]) if seen[name] else torch.empty(0, 0)
            if name in experts and len(x) < model.get_submodule(name).in_features:
                continue  # leans on its layer's pooled tokens: tests/unit/calibration/test_experts.py
            expected = (x.T @ x / len(x)).float()
            close([from_triangle(file.get(reads[name]))], [expected], f"second moment of {name}", 1e-3, True)


def quantized(
    folder: Path, method: str, entry: dict[str, Any], record: dict[str, Any], files: dict[str, str]
) -> dict[str, Any]:
    """One method: its checkpoint says in transformers what its weights say, unpacked into the original."""
    from quant.calibration.reader import Statistics
    from quant.checkpoints import stored
    from quant.evaluation.exact_error import measure
    from quant.files import pieces, tensorfile
    from quant.methods.quantize import quantize_checkpoint
    from quant.methods.source import Output, Source
    from quant.recipe.recipe import Recipe

    original, target = folder / "results/original/checkpoint", folder / f"results/{method}/checkpoint"
    target.mkdir(parents=True)
    needed = {} if method == "rtn_g" else files
    statistics = Statistics(needed, record["fingerprint"], PATTERNS)
    folds = target.parent / "folds.safetensors"
    recipe = Recipe.of(entry)
    made = {"recipe": entry, "model_fingerprint": record["fingerprint"], "versions": {}}
    result = quantize_checkpoint(Source.of(original, record), Output(target, folds), statistics, recipe, "cpu", made)
    rows = measure(original / "model.safetensors", target, folds, Path(files["moments"]), result, PATTERNS, "cpu")
    dense = target.parent / "dense"
    dense.mkdir()
    for file in original.iterdir():
        if file.name != "model.safetensors":
            shutil.copyfile(file, dense / file.name)
    with (
        stored.opened(target) as mine,
        tensorfile.opened(original / "model.safetensors") as plain,
        tensorfile.opened(folds) as moved,
    ):
        tensors = {name: plain.get(name) for name in plain.names}
        for linear in record["linears"]:  # as a change of the original's linears alone: what is folded is taken back
            w = mine.weight(linear)
            for side, shape in (("input", (1, -1)), ("output", (-1, 1))):
                if f"{linear}.{side}" in moved.names:
                    w = w / moved.get(f"{linear}.{side}").view(shape)
            tensors[f"{linear}.weight"] = w
        metadata = {key: plain.metadata[key] for key in (pieces.KEY,) if key in plain.metadata}
    tensorfile.save(dense / "model.safetensors", tensors, {"format": "pt"} | metadata)
    close(logits(target), logits(dense), f"{method} packed")
    if method == "rtn_g":
        from quant.data.tokens import Tokens, fingerprint
        from quant.evaluation.perplexity import evaluate, load_model

        tokens = Tokens(sequences(2), fingerprint(sequences(2)), {})
        found, _ = evaluate(load_model(target, "cpu", torch.float32), tokens, "cpu", 60)
        expected = [-x[:-1].log_softmax(-1).gather(1, ids[1:, None]).sum().item()
                    for x, ids in zip(logits(target), tokens.sequences, strict=True)]  # fmt: skip
        assert all(abs(row["nll"] - nll) <= 1e-3 * nll for row, nll in zip(found, expected, strict=True))
    return {"summary": result["summary"], "rows": rows}


class Outcome(NamedTuple):
    """What became of a type: right, refused (by one line of ours) or not built (transformers cannot, from words made
    small); in words, and the linears that were quantised, of experts too."""

    verdict: str
    words: str
    linears: int = 0
    experts: int = 0


def tried(kind: str, folder: Path) -> Outcome:
    """A type's outcome; what is wrong raises."""
    try:
        build(kind)
    except Exception as error:
        return Outcome("not built", f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")
    try:
        found = walk(kind, folder)
    except InputError as error:
        assert "\n" not in str(error)
        return Outcome("refused", str(error).replace(f"{folder}/source: ", "").replace(str(folder), ""))
    linears = found["record"]["linears"]
    summary, shared = found["rtn_g"]["summary"], found["awq_shared"]
    words = summary["storage"] + (f" ({summary['storage_reason']})" if summary["storage_reason"] else "")
    words += "; scales folded" if "summary" in shared else ""
    for reason, said in {"no token": "that no forward call reaches", "share": "that several blocks share"}.items():
        n = sum(reason in each for each in found["record"]["left"].values())
        words += f"; {n} linears {said} stay in 16 bit" if n else ""
    return Outcome("right", words, len(linears), sum(".experts." in name for name in linears))


def page(outcomes: dict[str, Outcome]) -> str:
    """docs/models.md."""
    import transformers

    count = {verdict: sum(each.verdict == verdict for each in outcomes.values()) for verdict in VERDICTS}
    lines = [
        "# Which models",
        "",
        f"Every type that `AutoModelForCausalLM` of transformers {transformers.__version__} knows, as a tiny random "
        "model through convert, statistics, round to nearest, GPTQ, AWQ with folded scales where folds are known, "
        "packing, loading by plain transformers and evaluation, by `python -m tests.matrix docs/models.md`. Right: the "
        "packed weights say what the simulated ones say, and each second moment is that of the linear's inputs in "
        "the whole model. This file is made by that command.",
        "",
        *READ,
        "",
        ", ".join(f"{n} {verdict}" for verdict, n in count.items()) + ".",
        "",
        "| type | | linears | of experts | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, each in sorted(outcomes.items(), key=lambda item: (VERDICTS.index(item[1].verdict), item[0])):
        words = each.words.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {kind} | {each.verdict} | {each.linears or ''} | {each.experts or ''} | {words} |")
    return "\n".join(lines) + "\n"


READ = [
    "Weights that are stored in a quantised format are dequantised by transformers, to the type that config.json "
    "names, where it does that on a CPU: compressed-tensors (pack-, int- and float-quantized), FP8 in blocks, "
    "MXFP4 as gpt-oss is published, and GGUF. Every tensor of the file must have a place then, and a scale, and "
    "report and cards say that an earlier grid shows through. GPTQ, AWQ, bitsandbytes and others are refused by "
    "name (`models/sources/dequantised.py`, `models/sources/quantised.py`).",
]
VERDICTS = ["right", "wrong", "refused", "not built"]


def main(path: Path) -> None:
    outcomes = {}
    for kind in kinds():
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcomes[kind] = tried(kind, Path(folder))
            except Exception as error:
                outcomes[kind] = Outcome("wrong", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
        print(kind, *outcomes[kind], flush=True)
    path.write_text(page(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
