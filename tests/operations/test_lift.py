"""What does not move is worked out in the precision of the bounds."""

import torch

from popqorn_train import bound
from popqorn_train.certificates.isolation import undisturbed
from tests.problems import Base, sequences


class Cast(Base):
    """Divides a constant in float32, as code does that autocast has bitten."""

    def forward(self, x):
        shift = self.start[0].float() / 3
        return self.head(self.rnn(x)[0][:, -1] + shift)


def test_a_cast_in_forward_does_not_undo_the_precision_of_the_bounds():
    model, x = Cast().eval(), sequences(2, 3).float()
    with undisturbed(model), torch.no_grad():
        instance = bound(model).instance(x, torch.float64)
        found = instance.logits(instance.center)
        model.double()
        states = model.rnn(x.double())[0][:, -1]
        expected = model.head(states + model.start[0] / 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
