"""A model that cannot be divided into body and head."""

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn


class Undivided(nn.Module):
    """A causal LM that calls neither a body nor a head."""

    base_model_prefix = "body"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner, self.config = model, model.config

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        states = self.inner.model(input_ids=input_ids, use_cache=use_cache).last_hidden_state
        return SimpleNamespace(logits=nn.functional.linear(states, self.inner.lm_head.weight))

    def get_output_embeddings(self) -> None:
        return None
