"""A forward of the user's own leaves nothing behind."""

import torch

from popqorn_train.tracing.preserve import preserved
from tests.problems import Base, sequences


class Restless(Base):
    """Draws, counts and keeps."""

    def forward(self, x):
        self.mean.add_(1)
        self.seen = x
        return self.last(x + torch.rand_like(x))


def test_the_generator_goes_on_as_if_nothing_had_been_drawn():
    model, x = Restless().double(), sequences(2, 3)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with preserved(model):
        model(x)
    assert torch.equal(torch.rand(3), expected)


def test_buffers_and_attributes_are_as_they_were():
    model, x = Restless().double(), sequences(2, 3)
    before = model.mean.clone()
    with preserved(model):
        model(x)
        assert not torch.equal(model.mean, before)
    assert torch.equal(model.mean, before)
    assert not hasattr(model, "seen")
