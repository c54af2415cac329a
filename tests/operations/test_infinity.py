"""-inf before a maximum is exact: the same network as one that leaves those frames out."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from popqorn_train import CertifiedLoss, LpBall, certified_radius, certify, logit_bounds
from tests.problems import METHODS, sequences

LENGTHS = torch.tensor([3, 5, 2, 5])
INFINITE = -math.inf


WAYS = {
    "masked_fill": lambda h, mask: h.masked_fill(~mask, INFINITE),
    "where": lambda h, mask: torch.where(mask, h, INFINITE),
    "where of a tensor": lambda h, mask: torch.where(mask, h, torch.full_like(h, INFINITE)),
    "an additive mask": lambda h, mask: h + mask.to(h.dtype).log(),
    "a subtracted mask": lambda h, mask: h - (-mask.to(h.dtype).log()),
    "a mask made by hand": lambda h, mask: h + torch.zeros(1, 5, 1).masked_fill(~mask, INFINITE),
    "the greatest negative": lambda h, mask: -torch.where(mask, -h, math.inf),
    "joined": lambda h, mask: torch.cat(
        [h.masked_fill(~mask, INFINITE), torch.full_like(h[:, :1], INFINITE)], 1
    ),
}


class Pooled(nn.Module):
    def __init__(self, way):
        super().__init__()
        torch.manual_seed(1)
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)
        self.way = way
        self.double()

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        out = self.rnn(packed)[0]
        value = INFINITE if self.way is None else 0.0
        h = pad_packed_sequence(out, batch_first=True, padding_value=value, total_length=5)[0]
        mask = (torch.arange(5) < lengths[:, None])[..., None]
        return self.head((h if self.way is None else self.way(h, mask)).amax(1))


class Finite(Pooled):
    """The reference: -1e9 in the place of -inf."""

    def __init__(self):
        super().__init__(lambda h, mask: h.masked_fill(~mask, -1e9))


@pytest.mark.one_in(6)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", [*WAYS.values(), None], ids=[*WAYS, "padding_value"])
def test_every_way_to_mask_is_the_same_network(way, method):
    model, right, x = Pooled(way).eval(), Finite().eval(), sequences(4, 5)
    inputs, y = (x, LENGTHS), right(x, LENGTHS).argmax(1)
    assert torch.equal(model(*inputs), right(*inputs))
    one, other = (certify(m, inputs, y, LpBall(0.02), method=method) for m in (model, right))
    torch.testing.assert_close(one.margins, other.margins)
    for m in (model, right):
        CertifiedLoss(0.02, method=method)(m, inputs, y).backward()
    for found, expected in zip(model.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("way", [WAYS["an additive mask"], WAYS["where"], None])
def test_float32_and_radii_agree(way):
    model, right, x = Pooled(way).eval(), Finite().eval(), sequences(4, 5)
    y = right(x, LENGTHS).argmax(1)
    options = {"method": "crown-ibp", "max_radius": 1.0}
    exact = certified_radius(right, (x, LENGTHS), y, **options)
    single = certified_radius(model.float(), (x.float(), LENGTHS), y, **options)
    torch.testing.assert_close(single.double(), exact, rtol=5e-3, atol=1e-5)
    lower, upper = logit_bounds(model, (x.float(), LENGTHS), LpBall(0.02), method="ibp")
    assert lower.isfinite().all()
    assert upper.isfinite().all()
