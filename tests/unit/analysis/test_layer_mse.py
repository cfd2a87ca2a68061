"""The direct check on one layer: sums against a slow reference, however a block shapes its inputs."""

import numpy as np
import pytest
import torch

from quant.analysis.layer_mse import INT4, Candidates
from quant.calibration.second_moments import mirror
from quant.data.tokens import batches
from quant.recipe.grids import nearest


@pytest.mark.parametrize("shape", [(), (1,), "flat"], ids=str)
def test_errors_of_each_sequence_and_channel(shape: tuple[int, ...] | str) -> None:
    """[n, width, in]; DeepSeek's [n, 1, width, in]; rows alone, as some MLPs read them."""
    generator = torch.Generator().manual_seed(0)
    w, kept = torch.randn(5, 6, generator=generator), {"awq": torch.tensor([True, False, False, True, False])}
    inputs = [torch.randn(length, 6, generator=generator) for length in (4, 2, 3, 4)]
    found = Candidates(w, kept, len(inputs))
    for batch in batches([torch.arange(len(x)) for x in inputs], 8):
        x = torch.full((*batch.ids.shape, 6), 9.0)  # padding, which counts for nothing
        for row, length in enumerate(batch.lengths.tolist()):
            x[row, :length] = inputs[batch.first + row]
        n, width = batch.ids.shape
        found.add(x.view(n * width, 6) if shape == "flat" else x.view(n, *shape, width, 6), batch)
    rounded = torch.where(kept["awq"][:, None], w, nearest(w, INT4)).double().numpy()
    errors = [((x.double().numpy() @ (w.double().numpy() - rounded).T) ** 2) for x in inputs]
    np.testing.assert_allclose(found.by_sequence["awq"].numpy(), [each.sum() for each in errors], rtol=1e-5)
    np.testing.assert_allclose(found.by_channel["awq"].numpy(), sum(each.sum(0) for each in errors), rtol=1e-5)
    every = torch.cat(inputs).double().numpy()
    np.testing.assert_allclose(mirror(found.outer).numpy(), every.T @ every, rtol=1e-4)
