"""The text model of a multimodal checkpoint: its logits are the whole model's, or it is refused as multimodal."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quant.errors import InputError
from quant.models.conversion.convert import convert
from tests import matrix, tiny

TEXT = {
    "vocab_size": 256, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


def llava() -> Any:
    import transformers as t

    parts = {"vision_config": t.CLIPVisionConfig(**VISION), "text_config": t.LlamaConfig(**TEXT)}
    return t.LlavaForConditionalGeneration(t.LlavaConfig(**parts, image_token_index=5))


def mistral3() -> Any:
    """The whole model's configuration alone says that the head is the embedding."""
    import transformers as t

    parts = {"vision_config": t.PixtralVisionConfig(**VISION), "text_config": t.MistralConfig(**TEXT)}
    whole = t.Mistral3Config(**parts, image_token_index=5, tie_word_embeddings=True)
    return t.Mistral3ForConditionalGeneration(whole)


def llama4() -> Any:
    """Experts whole in the file."""
    import transformers as t

    wide = {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    text = t.Llama4TextConfig(**TEXT, intermediate_size_mlp=48, num_local_experts=4, num_experts_per_tok=1)
    return t.Llama4ForConditionalGeneration(
        t.Llama4Config(vision_config=t.Llama4VisionConfig(**VISION, **wide), text_config=text)
    )


def qwen3_vl() -> Any:
    """Its text model is none that transformers has alone."""
    import transformers as t

    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 4, "intermediate_size": 48, "out_hidden_size": 32}
    return t.Qwen3VLForConditionalGeneration(
        t.Qwen3VLConfig(
            vision_config=vision | {"deepstack_visual_indexes": [0]}, text_config=TEXT | {"rope_parameters": rope}
        )
    )


def saved(make: Callable[[], Any], folder: Path) -> Any:
    torch.manual_seed(0)
    model = make().float().eval()
    model.save_pretrained(folder)
    tiny.save_byte_tokenizer(folder)
    return model


@pytest.mark.parametrize("make", [llava, mistral3, llama4])
@pytest.mark.parametrize("inner", [False, True])
def test_a_text_model_says_what_the_whole_model_says(make: Callable[[], Any], inner: bool, tmp_path: Path) -> None:
    """Under either way to name its tensors, language_model.model. and model.language_model."""
    model = saved(make, tmp_path / "model")
    if inner:
        path = tmp_path / "model/model.safetensors"
        names = {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."}
        pattern = re.compile("^(" + "|".join(map(re.escape, names)) + ")")
        renamed = {pattern.sub(lambda found: names[found[1]], name): each for name, each in load_file(path).items()}
        save_file(renamed, path, {"format": "pt"})
    convert({"directory": str(tmp_path / "model")}, tmp_path / "checkpoint", tmp_path / "convert.json")
    with torch.inference_mode():
        whole = [model(input_ids=ids[None]).logits[0] for ids in matrix.sequences(2)]
    matrix.close(matrix.logits(tmp_path / "checkpoint"), whole, "text model", 1e-5)
    assert not any("vision" in name for name in load_file(tmp_path / "checkpoint/model.safetensors"))


def test_what_has_no_text_model_of_its_own_is_refused_as_multimodal(tmp_path: Path) -> None:
    saved(qwen3_vl, tmp_path / "model")
    with pytest.raises(InputError, match=r"is multimodal \(qwen3_vl\), and its text model cannot be taken out of it"):
        convert({"directory": str(tmp_path / "model")}, tmp_path / "checkpoint", tmp_path / "convert.json")
