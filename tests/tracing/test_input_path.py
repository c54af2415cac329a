"""What is folded into the ball on the way to the first recurrent layer, and what is not."""

import pytest
import torch

from popqorn_train import LpBall, UnsupportedModelError, bound, logit_bounds
from tests.problems import Base, sequences


class Reading(Base):
    """Sends its input through a function first."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.last(self.function(x))


READINGS = {
    "a scale": (lambda x: x * 2 - 1, (2, 4, 3)),
    "the first frames": (lambda x: x[:, :3], (2, 3, 3)),
    "a quotient": (lambda x: x / 3, (2, 4, 3)),
    "a frame twice": (lambda x: x[:, [0, 0, 2]], (2, 4, 3)),  # both move alike
    "a product": (lambda x: x * x, (2, 4, 3)),
}


@pytest.mark.parametrize(("function", "shape"), READINGS.values(), ids=READINGS)
def test_what_moves_keeps_every_entry_once(function, shape):
    model, x = Reading(function).double().eval(), sequences(2, 4)
    assert bound(model).instance(x).center.shape == shape
    bounds = logit_bounds(model, x, LpBall(0.2))
    for _ in range(100):
        logits = model(x + 0.2 * (2 * torch.rand_like(x) - 1).sign())
        assert ((bounds.lower <= logits + 1e-12) & (logits <= bounds.upper + 1e-12)).all()


def test_a_quotient_by_what_moves_is_no_scale():
    model, x = Reading(lambda x: 1 / x).double().eval(), sequences(2, 4).abs() + 1
    assert torch.equal(bound(model).instance(x).center, x)
    bounds = logit_bounds(model, x, LpBall(0.2))
    for _ in range(100):
        logits = model(x + 0.2 * (2 * torch.rand_like(x) - 1).sign())
        assert ((bounds.lower <= logits + 1e-12) & (logits <= bounds.upper + 1e-12)).all()


class Sentences(torch.nn.Module):
    """Reads words of several sentences a sample, which are on one axis with the batch."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(9, 3)
        self.fc = torch.nn.Linear(3, 2)

    def forward(self, tokens):
        batch, sentences, words = tokens.shape
        read = self.words(tokens.view(batch * sentences, words)).tanh().mean(1)
        return self.fc(read.view(batch, sentences, -1).mean(1))


def test_words_that_are_embedded_with_samples_on_one_axis_are_refused():
    tokens = torch.randint(9, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    with pytest.raises(UnsupportedModelError, match="Embed them first"):
        bound(Sentences().eval()).instance(tokens)
