"""Which layer `auto` is."""

import pytest

from quant.models.structure.depth import layer_at, layer_words


@pytest.mark.parametrize(("layers", "layer"), [(1, 0), (2, 1), (3, 1), (12, 8), (24, 17), (28, 19), (29, 28), (40, 28)])
def test_auto_is_layer_28_or_as_deep(layers: int, layer: int) -> None:
    assert layer_at("auto", layers) == layer
    assert layers > 28 or abs(layer / max(layers - 1, 1) - 28 / 39 * (layers > 1)) <= 0.5 / max(layers - 1, 1)


def test_auto_exists_at_every_depth() -> None:
    assert all(0 <= layer_at("auto", layers) < layers for layers in range(1, 200))


def test_a_layer_that_is_named_stays_as_it_is() -> None:
    assert layer_at(5, 2) == 5 and layer_at("5", 2) == 5


def test_words_say_what_is_not_layer_28() -> None:
    assert layer_words("auto", 28, 30) == layer_words(28, 28, 30) == "Layer 28"
    assert layer_words(1, 1, 2) == "Layer 1"
    assert layer_words("auto", 1, 2) == "Layer 1, which lies as deep in this model of 2 as layer 28 in one of 40"
