"""Normalisation layers: their ranges and lines hold, the rounding of small numbers included."""

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, certify
from popqorn_train.operations.norms import Normalising
from popqorn_train.perturbations.region import Bounds
from tests.problems import Base, sequences

F64 = torch.float64


def normalised(x, eps):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


@pytest.mark.parametrize("width", [0.0, 1e-3, 5.0])
def test_range_and_lines_enclose_what_is_normalised(width):
    center, steps = 2 * torch.randn(200, 6, dtype=F64), 2 * torch.rand(100, 200, 6, dtype=F64) - 1
    steps[50:] = steps[50:].sign()
    lower, upper = center - width, center + width
    x = (center + width * steps).clamp(lower, upper)
    f, norm = normalised(x, 1e-5), Normalising(1e-5)
    hull, lines = norm.range(Bounds(lower, upper)), norm.lines(lower, upper)
    assert ((hull.lower <= f + 1e-14) & (f <= hull.upper + 1e-14)).all()
    assert (lines.lower_slope * x + lines.lower_intercept <= f + 1e-14).all()
    assert (lines.upper_slope * x + lines.upper_intercept >= f - 1e-14).all()


def test_the_range_of_a_point_holds_its_exact_value_in_float32():
    x = torch.randn(2000, 5)
    exact = normalised(x.double(), 1e-5)
    lower, upper = (end.double() for end in Normalising(1e-5).range(Bounds(x, x)))
    assert ((lower <= exact) & (exact <= upper)).all()
    assert (upper - lower < 1e-4).all()


def test_one_feature_that_is_all_reaches_the_root_of_their_number():
    lower, upper = torch.full((1, 4), -9.0, dtype=F64), torch.full((1, 4), 9.0, dtype=F64)
    hull = Normalising(1e-12).range(Bounds(lower, upper))
    torch.testing.assert_close(hull.upper, torch.full_like(upper, 2.0))
    torch.testing.assert_close(hull.lower, torch.full_like(lower, -2.0))


class Small(Base):
    """An RMSNorm without an eps, on states so small that it counts."""

    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(4)

    def forward(self, x):
        return self.head(self.norm(1e-4 * self.rnn(x)[0][:, -1]))


def test_the_eps_of_a_norm_without_one_is_that_of_the_weights():
    torch.manual_seed(0)
    model, x = Small().eval(), sequences(2, 3).float()
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    found = certify(model, x, y, LpBall(0.0))
    assert found.numerics == "float64"
    own = logits.gather(1, y[:, None]) - logits
    finite = found.margins.isfinite()
    torch.testing.assert_close(found.margins[finite].float(), own[finite], rtol=0, atol=1e-4)
