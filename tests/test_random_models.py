"""A thousand random classifiers, and batches after the first: nothing false, no false alarm."""

import math

import pytest
import torch

from popqorn_train import LpBall, bound, certified_radius, certify
from tests.random_models import RandomModel

METHODS = ("ibp", "crown-ibp", "popqorn-fast", "popqorn")
QUICK, ALL = 4, 1000


def check(seed):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = RandomModel(generator).double().eval()
    with torch.no_grad():
        for weight in model.rnn.parameters():
            weight.mul_(1.5)
    axis = 1 if model.layout == "time first" else 0
    p = (1, 2, math.inf)[seed % 3]
    for number, size in enumerate((3, 1, 5, 5)):
        inputs = model.batch(size, generator)
        if number == 3:  # the same samples in another order
            turn = torch.randperm(size, generator=generator)
            inputs = tuple(x.index_select(min(axis, x.ndim - 1), turn) for x in inputs)
        y, method = model.labels(inputs), METHODS[(seed + number) % 3]
        # Behind a front, nobody says which of the axes of an image holds the frames.
        layer = bound(model, frame_axis=2) if model.layout == "image" else bound(model)
        radius = certified_radius(layer, inputs, y, p=p, method=method, rtol=0.05)
        certify(layer, inputs, y, LpBall(1.3 * radius, p), method=method)
        for everywhere in (False, p == math.inf, p == math.inf):
            moved = (nearby(inputs[0], axis, radius, everywhere, generator), *inputs[1:])
            lost = (model.labels(moved) != y) & (radius > 0)
            assert not lost.any(), (seed, number, method, p)


def nearby(x, axis, radius, everywhere, generator):
    """A point inside the radius: everywhere at once for l_inf, else one coordinate of a sample."""
    rows = x.movedim(axis, 0)
    flat = rows.flatten(1)
    signs = 2.0 * torch.randint(2, flat.shape, generator=generator) - 1
    at = torch.randint(flat.shape[1], (len(flat), 1), generator=generator)
    chosen = torch.ones_like(flat) if everywhere else torch.zeros_like(flat).scatter(1, at, 1.0)
    moved = flat + 0.999 * radius[:, None] * chosen * signs
    return moved.view(rows.shape).movedim(0, axis)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("seed", range(QUICK))
def test_a_random_model_is_certified_truly_at_every_batch(seed):
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(QUICK, ALL, 25))
def test_a_thousand_random_models(seed):
    for number in range(seed, min(seed + 25, ALL)):
        check(number)
