"""A forward of the user's own leaves nothing behind."""

import torch

from popqorn_train.tracing.preserve import preserved
from tests.problems import Base, sequences


class Restless(Base):
    """Counts and keeps."""

    def forward(self, x):
        self.mean.add_(1)
        self.seen = x
        return self.last(x)


def test_buffers_and_attributes_are_as_they_were():
    model, x = Restless().double(), sequences(2, 3)
    before = model.mean.clone()
    with preserved(model):
        model(x)
        assert not torch.equal(model.mean, before)
    assert torch.equal(model.mean, before)
    assert not hasattr(model, "seen")
