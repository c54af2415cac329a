"""Radii of single frames: those of a mask with one frame, all at once."""

import math

import pytest
import torch

from popqorn_train import LpBall, certified_radius, certify, frame_radii
from tests.problems import CELLS, METHODS, NORMS, build, predicted, sequences

cells = pytest.mark.parametrize("cell", CELLS)


def problem(cell, batch=4, time=5, **options):
    model, x = build(cell, **options), sequences(batch, time, seed=5)
    return model, x, predicted(model, x)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("method", METHODS)
@cells
def test_a_frame_has_the_radius_of_a_mask_with_this_frame(cell, method, p):
    model, x, y = problem(cell, num_layers=2)
    found = frame_radii(model, x, y, p=p, method=method)
    assert found.shape == (4, 5)
    for t in range(5):
        mask = torch.arange(5) == t
        one = certified_radius(model, x, y, p=p, method=method, frames=mask)
        torch.testing.assert_close(found[:, t], one, rtol=1e-9, atol=0)
        assert certify(
            model, x, y, LpBall(found[:, t], p, frames=mask), method=method
        ).certified.all()


@pytest.mark.parametrize("p", [2, math.inf])
def test_a_domain_of_every_sample_and_frame_is_kept(p):
    model, x, _ = problem("gru")
    x = x.clamp(-1, 1)
    y, low, high = predicted(model, x), torch.full_like(x, -1), 1 + x.abs()
    found = frame_radii(model, x, y, p=p, low=low, high=high)
    for t in range(5):
        mask = torch.arange(5) == t
        one = certified_radius(model, x, y, p=p, frames=mask, low=low, high=high)
        torch.testing.assert_close(found[:, t], one, rtol=1e-9, atol=0)


def test_a_wrong_prediction_has_radius_0_in_every_frame():
    model, x, y = problem("lstm")
    y[1] = (y[1] + 1) % 3
    found = frame_radii(model, x, y)
    assert (found[1] == 0).all()
    assert (found[[0, 2, 3]] > 0).all()


class FirstFrames(torch.nn.Module):
    """Reads the state after two frames: the rest is padding."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.head(self.model.rnn(x)[0][:, 1])


def test_a_frame_that_nothing_depends_on_has_the_largest_radius_tried():
    model, x, y = problem("gru")
    padded = FirstFrames(model)
    y = predicted(padded, x)
    found = frame_radii(padded, x, y, max_radius=3.0)
    assert (found[:, 2:] == 3).all()
    short = frame_radii(model, x[:, :2], y, max_radius=3.0)
    torch.testing.assert_close(found[:, :2], short, rtol=1e-9, atol=0)


def test_float32_radii_are_proved_in_float64():
    model, x, y = problem("lstm")
    x = x.float()
    found = frame_radii(model.float(), x, y)
    assert found.dtype == torch.float32
    for t in range(5):
        ball = LpBall(found[:, t].double(), frames=torch.arange(5) == t)
        assert certify(model.double(), x.double(), y, ball).certified.all()
        model.float()


def test_little_memory_gives_the_same_radii():
    model, x, y = problem("gru")
    whole = frame_radii(model, x, y)
    torch.testing.assert_close(frame_radii(model, x, y, max_bytes=1), whole, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rtol": 0}, "`rtol`"), ({"max_bytes": 0}, "`max_bytes`.*0"), ({"p": 0.5}, "`p`.*0.5")],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        frame_radii(*problem("gru"), **options)
