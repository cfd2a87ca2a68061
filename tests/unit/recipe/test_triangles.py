"""Inverses by products against float64's."""

import pytest
import torch

from quant.recipe.triangles import BASE, inverse_upper


@pytest.mark.parametrize("n", [1, 5, BASE, BASE + 1, 2 * BASE, 400, 577])
def test_inverse(n: int) -> None:
    x = torch.randn(n + 20, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    upper = torch.linalg.cholesky(x.T @ x / n + 0.01 * torch.eye(n)).mT
    expected = torch.linalg.solve_triangular(upper, torch.eye(n, dtype=torch.float64), upper=True)
    for kind, slack in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        given = upper.to(kind)
        found = inverse_upper(given)
        assert torch.equal(found, inverse_upper(given.T.contiguous().T))  # however it lies in memory
        assert torch.equal(found, found.triu()) and torch.equal(given, upper.to(kind))
        assert (found.double() - expected).norm() <= slack * expected.norm()
