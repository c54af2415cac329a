"""A batch ready to be bounded: its parts, its layout, and what it is compared with."""

from functools import partial

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, UnsupportedModelError, bound, logit_bounds
from popqorn_train.certificates.fidelity import check_logits
from popqorn_train.certificates.frame_layout import as_frames
from tests.problems import Base, build, sequences


class Gained(Base):
    """Every sample has a gain of its own, which is folded into the ball."""

    def forward(self, x, gain):
        return self.last(x * gain)


@pytest.mark.parametrize("p", [2, torch.inf])
def test_picked_samples_keep_their_own_scale(p):
    model, x = Gained().double().eval(), sequences(3, 4)
    gain = torch.tensor([0.5, 1.0, 3.0]).double()[:, None, None]
    whole = logit_bounds(model, (x, gain), LpBall(0.1, p))
    order = torch.tensor([2, 0, 1])
    instance = bound(model).instance((x, gain)).pick(order)
    assert instance.scale is not None
    region = instance.placed(LpBall(0.1, p))
    torch.testing.assert_close(region.scale, gain[order].expand_as(x))
    moved = logit_bounds(model, (x[order], gain[order]), LpBall(0.1, p))
    torch.testing.assert_close(moved.lower, whole.lower[order])


class TimeMajor(nn.Module):
    """Time first, with a context of the same layout."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4), nn.Linear(4, 3)

    def forward(self, x, context):
        return self.head(self.rnn(x)[0][-1] + context[0])


def test_samples_are_picked_along_the_axis_of_the_batch():
    model, x = TimeMajor().double().eval(), sequences(3, 3).transpose(0, 1).contiguous()
    context = torch.randn(3, 3, 4).double()
    order = torch.tensor([2, 0])
    part = bound(model).instance((x, context)).pick(order)
    expected = model(x[:, order], context[:, order])
    torch.testing.assert_close(part.logits(part.center), expected)


def test_frames_are_made_of_the_entries_that_an_order_names():
    x = torch.arange(12.0).view(1, 3, 4)
    order = torch.arange(12).view(3, 4).T  # frames are the columns
    assert torch.equal(as_frames(x, 0, order), x.transpose(1, 2))
    assert torch.equal(as_frames(x.movedim(0, 2), 2, order), x.transpose(1, 2))


@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 1e-3), (torch.float64, 3e-12)])
def test_an_output_that_is_off_by_more_than_rounding_is_refused(dtype, far):
    model, x = build("gru").to(dtype), sequences(3, 4).to(dtype)
    with torch.no_grad():
        instance, output = bound(model).instance(x), model(x)
    exact = partial(instance.to, torch.float64)
    check_logits(instance, exact, output, dtype)
    check_logits(instance, exact, output + 0.01 * far, dtype)
    other = output.clone()
    other[1, 2] += far
    with pytest.raises(UnsupportedModelError, match="does not reproduce"):
        check_logits(instance, exact, other, dtype)
