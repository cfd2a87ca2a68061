"""Inverses by products against float64's."""

import pytest
import torch

from quant.recipe.triangles import BASE, PORTION, inverse_upper


@pytest.mark.parametrize("n", [1, 5, BASE, BASE + 1, 2 * BASE, 400, 577])
@pytest.mark.parametrize("portion", [PORTION, 37])
def test_inverse(n: int, portion: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant.recipe.triangles.PORTION", portion)
    x = torch.randn(n + 20, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    upper = torch.linalg.cholesky(x.T @ x / n + 0.01 * torch.eye(n)).mT
    expected = torch.linalg.solve_triangular(upper, torch.eye(n, dtype=torch.float64), upper=True)
    for kind, slack in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        given = upper.to(kind)
        found = inverse_upper(given)
        assert torch.equal(found, inverse_upper(given.T.contiguous().T))  # however it lies in memory
        assert torch.equal(found, found.triu()) and torch.equal(given, upper.to(kind))
        assert (found.double() - expected).norm() <= slack * expected.norm()
        place = upper.to(kind).clone()
        assert torch.equal(inverse_upper(place, overwrite=True), found)
        assert torch.equal(place, found) == (n not in (BASE + 1, 577)), "which are made wider"
