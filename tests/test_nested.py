"""Nests of tuples are cut into as many nests."""

import torch

from popqorn_train.nested import cut_nested
from popqorn_train.perturbations.region import Bounds


def test_every_piece_gets_a_nest_of_its_own():
    x, y = torch.arange(6.0), -torch.arange(6.0)
    for value in (Bounds(x, y), (Bounds(x, y), x), ((y,), Bounds(y, x))):
        pieces = cut_nested(value, torch.Tensor, lambda part: part.split(2))
        assert len(pieces) == 3
        assert [type(piece) for piece in pieces] == [type(value)] * 3
    low, high = cut_nested(Bounds(x, y), torch.Tensor, lambda part: part.split(3))[1]
    assert low.tolist() == [3, 4, 5]
    assert high.tolist() == [-3, -4, -5]
