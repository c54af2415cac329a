"""Radii of single frames: those of a mask with one frame, all at once."""

import math

import pytest
import torch

from popqorn_train import LpBall, certified_radius, certify, frame_radii, logit_bounds
from popqorn_train.bounds.methods import Popqorn
from tests.problems import (
    F64,
    NORMS,
    SOME_CELLS,
    build,
    margins,
    predicted,
    recurrent,
    sequences,
)

# Searched slopes turn the rounding of frames that stay into other slopes; closed forms do not.
SMOOTH = Popqorn("lambda", (), own_lines=False)
METHODS = ("ibp", "crown-ibp", SMOOTH)
cells = pytest.mark.parametrize("cell", SOME_CELLS)


def problem(cell, batch=4, time=5, **options):
    model, x = build(cell, **options), sequences(batch, time, seed=5)
    return model, x, predicted(model, x)


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("method", "p"), zip(METHODS, NORMS, strict=True))
@pytest.mark.parametrize("batch", [2, 12])  # all frames together, two at a time
@cells
def test_a_frame_has_the_radius_of_a_mask_with_this_frame(cell, batch, method, p):
    model, x, y = problem(cell, batch, num_layers=2)
    found = frame_radii(model, x, y, p=p, method=method)
    assert found.shape == (batch, 5)
    for t in range(5):
        mask = torch.arange(5) == t
        one = certified_radius(model, x, y, p=p, method=method, frames=mask)
        torch.testing.assert_close(found[:, t], one, rtol=1e-9, atol=0)
        assert certify(
            model, x, y, LpBall(found[:, t], p, frames=mask), method=method
        ).certified.all()


class Started(torch.nn.Module):
    """Reads time first, from a state that is given, and all frames with both states at the end."""

    def __init__(self, cell):
        super().__init__()
        self.rnn = recurrent(cell, 3, 4, num_layers=2).double()
        self.head = torch.nn.Linear(4, 3, dtype=F64)
        self.start = torch.nn.Parameter(torch.randn(2, 1, 4, dtype=F64))

    def forward(self, x):
        start = self.start.expand(2, x.shape[1], 4)
        lstm = isinstance(self.rnn, torch.nn.LSTM)
        out, state = self.rnn(x, (start, start + 1) if lstm else start)
        h, c = state if lstm else (state, state)
        return self.head(out.sum(0) + h[0] - 0.5 * c[1])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("still", [1, 4])
@cells
def test_frames_before_the_first_that_moves_change_no_margin(cell, still, dtype):
    torch.manual_seed(0)
    model, x = Started(cell).to(dtype), sequences(5, 3, seed=5).transpose(0, 1)
    x = torch.cat([x, x]).to(dtype)  # (T, B, N)
    y, late = predicted(model, x), torch.arange(6) >= still
    found = certify(model, x, y, LpBall(0.1, frames=late), method=SMOOTH).margins
    early = late.expand(5, 6).clone()
    early[0] = True  # then the first sample moves from the start, and all are bounded from there
    expected = certify(model, x, y, LpBall(0.1, frames=early), method=SMOOTH).margins
    close = 1e-10 if dtype == F64 else 1e-5
    torch.testing.assert_close(found[1:], expected[1:], rtol=close, atol=close)
    generator = torch.Generator().manual_seed(1)
    steps = torch.rand(200, *x.shape, generator=generator).round() * 2 - 1
    points = x + 0.1 * steps.to(x) * late[:, None, None]
    logits = torch.stack([model(point) for point in points])
    worst = margins(logits.flatten(0, 1), y.repeat(200)).view(200, 5, 3).amin(0)
    assert (found <= worst + (1e-12 if dtype == F64 else 1e-6)).all()


@cells
def test_weights_have_the_same_gradient_whatever_ran_before(cell):
    model, x, _ = problem(cell)
    late = torch.arange(5) >= 2
    early = late.expand(4, 5).clone()
    early[0] = True
    gradients = []
    for mask in (late, early):
        loss = logit_bounds(model, x, LpBall(0.1, frames=mask), method=SMOOTH).lower[1:].sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("p", [2, math.inf])
def test_a_domain_of_every_sample_and_frame_is_kept(p):
    model, x, _ = problem("tanh")
    x = x.clamp(-1, 1)
    y, low, high = predicted(model, x), torch.full_like(x, -1), 1 + x.abs()
    found = frame_radii(model, x, y, p=p, low=low, high=high, method=SMOOTH)
    for t in range(5):
        mask = torch.arange(5) == t
        one = certified_radius(model, x, y, p=p, frames=mask, low=low, high=high, method=SMOOTH)
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
    # Both searches end within rtol = 1e-3 of a root, on either side of each other.
    torch.testing.assert_close(found[:, :2], short, rtol=2e-3, atol=0)


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
    model, x, y = problem("tanh")
    whole = frame_radii(model, x, y, method=SMOOTH)
    found = frame_radii(model, x, y, method=SMOOTH, max_bytes=1)
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rtol": 0}, "`rtol`"), ({"max_bytes": 0}, "`max_bytes`.*0"), ({"p": 0.5}, "`p`.*0.5")],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        frame_radii(*problem("gru"), **options)
