"""Signs, factors and places in the operations between recurrent layers and logits."""

import pytest
import torch

from popqorn_train import LpBall, logit_bounds
from tests.problems import METHODS, Base, sequences


class Between(Base):
    """What a function makes of all states goes to the head."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.head(self.function(self, self.rnn(x)[0]))


FUNCTIONS = {
    "states apart": lambda net, out: out[:, 0] - out[:, -1],
    "shapes apart": lambda net, out: (out - out[:, :1]).sum(1),
    "alpha": lambda net, out: torch.sub(out[:, -1], net.start[0], alpha=0.5),
    "alpha, added": lambda net, out: torch.add(out[:, -1], net.start[0], alpha=-2),
    "from a constant": lambda net, out: 1 - out[:, -1],
    "minus": lambda net, out: -out[:, 0] + out[:, 1],
    "last but one": lambda net, out: out[:, -2],
}


@pytest.mark.one_in(12)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_points_stay_inside_and_epsilon_0_is_exact(function):
    torch.manual_seed(0)
    model, x = Between(function).double().eval(), sequences(2, 4)
    points = x + 0.2 * (2 * torch.rand(100, *x.shape).double() - 1).sign()
    with torch.no_grad():
        logits = model(points.flatten(0, 1)).view(100, 2, -1)
    for method in METHODS:
        lower, upper = logit_bounds(model, x, LpBall(0.2), method=method)
        assert ((lower <= logits + 1e-12) & (logits <= upper + 1e-12)).all()
        for end in logit_bounds(model, x, LpBall(0.0), method=method):
            torch.testing.assert_close(end, model(x), rtol=0, atol=1e-12)
