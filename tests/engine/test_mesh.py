"""The devices of a run: their random numbers."""

import torch

from luthier.engine.mesh import Mesh


def test_a_seed_draws_what_torch_draws():
    torch.manual_seed(7)
    expected = torch.rand(5)
    torch.rand(3)
    Mesh(torch.device("cpu")).seed(7)
    assert torch.equal(torch.rand(5), expected)
