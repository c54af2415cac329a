"""Numbers of the whole batch in forward: ``x[:, : lengths.max()]`` is the batch's, always."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from popqorn_train import (
    CertifiedLoss,
    LpBall,
    UnsupportedModelError,
    bound,
    certified_radius,
    certify,
    certify_loader,
    frame_radii,
)
from popqorn_train.certificates import planning
from popqorn_train.errors import MixedSamplesError
from popqorn_train.tracing import trace
from tests.problems import F64, sequences

LENGTHS = tuple(map(torch.tensor, ([2, 4, 1, 3], [1, 1, 2, 5], [3, 3, 3, 3], [1, 1, 1, 1])))


class Net(nn.Module):
    def __init__(self, code):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.GRU(3, 3, batch_first=True), nn.Linear(3, 3)
        self.words = nn.Embedding(7, 3)
        self.code = code
        self.double().eval()

    def forward(self, x, lengths):
        return self.code(self, x, lengths)


def packed(net, x, lengths):
    return net.head(
        net.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1][-1]
    )


def masked(net, x, lengths):
    out = net.rnn(x)[0]
    mask = torch.arange(x.size(1))[None] < lengths[:, None]
    return net.head((out * mask[..., None]).sum(1) / lengths[:, None])


def packed_to_the_longest(net, x, lengths):
    return packed(net, x[:, : lengths.max()], lengths)


def packed_by_item(net, x, lengths):
    return packed(net, x[:, : lengths.max().item(), :], lengths)


def masked_to_the_longest(net, x, lengths):
    return masked(net, x[:, : lengths.amax(0), :], lengths)


def masked_by_a_mask(net, x, lengths):
    mask = torch.arange(x.size(1))[None] < lengths[:, None]
    return masked(net, x[:, mask.any(0)], lengths)


def masked_by_a_range(net, x, lengths):
    out, longest = net.rnn(x)[0], lengths.max()
    mask = torch.arange(longest)[None] < lengths[:, None]
    return net.head((out[:, :longest] * mask[..., None]).sum(1))


def gathered(net, x, lengths):
    return net.head(net.rnn(x[:, : lengths.max()])[0][torch.arange(len(x)), lengths - 1])


def unpacked_to_the_longest(net, x, lengths):
    out, _ = net.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    out, _ = pad_packed_sequence(out, batch_first=True, total_length=lengths.max())
    return net.head(out.sum(1) + out[:, 0])


def sorted_to_the_longest(net, x, lengths):
    falling, order = lengths.sort(descending=True)
    return packed(net, x[order][:, : falling[0]], falling)[order.argsort()]


KINDS = (packed_to_the_longest, packed_by_item, masked_to_the_longest, masked_by_a_mask)
KINDS += (masked_by_a_range, gathered, unpacked_to_the_longest, sorted_to_the_longest)
kinds = pytest.mark.parametrize("code", KINDS, ids=lambda code: code.__name__)
SOME = [pytest.param(code, marks=[pytest.mark.slow] * (at % 2)) for at, code in enumerate(KINDS)]


@pytest.mark.one_in(12)
@kinds
def test_later_batches_of_other_lengths_have_the_margins_of_their_samples_alone(code):
    model, x = Net(code), sequences(4, 5)
    for lengths in LENGTHS:
        y = model(x, lengths).argmax(1)
        whole = certify(model, (x, lengths), y, LpBall(0.05), method="crown-ibp")
        small = certify(model, (x, lengths), y, LpBall(0.05), method="crown-ibp", max_bytes=1)
        for index, length in enumerate(lengths.tolist()):
            one = x[index : index + 1, :length], lengths[index : index + 1]
            found = certify(model, one, y[index : index + 1], LpBall(0.05), method="crown-ibp")
            for margins in (whole.margins[index], small.margins[index]):
                torch.testing.assert_close(found.margins[0], margins, rtol=0, atol=1e-9)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("code", SOME, ids=lambda code: code.__name__)
def test_searches_and_loaders_hold_the_length_of_the_batch(code):
    model, x = Net(code), sequences(4, 5)
    settings = {"method": "crown-ibp", "rtol": 0.1, "max_radius": 2.0}
    batches = [((x, lengths), model(x, lengths).argmax(1)) for lengths in LENGTHS[:2]]
    rows = certify_loader(model, batches, progress=False, **settings)
    found = torch.tensor([row.radius for row in rows], dtype=F64)
    expected = torch.cat([certified_radius(model, *batch, **settings) for batch in batches])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert (expected > 0).any()
    assert frame_radii(model.float(), (x.float(), LENGTHS[0]), batches[0][1], **settings).any()


def test_tokens_are_cut_to_the_longest():
    def cut(net, tokens, lengths):
        return packed(net, net.words(tokens[:, : lengths.max()]), lengths)

    def whole(net, tokens, lengths):
        return packed(net, net.words(tokens), lengths)

    model, twin = Net(cut), Net(whole)
    tokens = torch.arange(20).view(4, 5) % 7
    for lengths in LENGTHS:
        y = twin(tokens, lengths).argmax(1)
        for max_bytes in (None, 1):
            found, expected = (
                certify(net, (tokens, lengths), y, LpBall(0.05), method="ibp", max_bytes=max_bytes)
                for net in (model, twin)
            )
            torch.testing.assert_close(found.margins, expected.margins, rtol=0, atol=1e-9)


def test_re_bounding_holds_the_length_of_the_batch():
    model, x = Net(packed_to_the_longest), sequences(4, 5)
    lengths = torch.tensor([1, 3, 2, 1])
    y = model(x, lengths).argmax(1)
    radius = certified_radius(model, (x, lengths), y, rtol=0.1, confirm=None) * 1.1
    plain = certify(Net(packed), (x, lengths), y, LpBall(radius), method="popqorn-tight")
    found = certify(model, (x, lengths), y, LpBall(radius), method="popqorn-tight")
    torch.testing.assert_close(found.margins, plain.margins, rtol=0, atol=1e-9)


def test_losses_trace_once_for_every_length_of_a_batch(monkeypatch):
    recorded = []
    monkeypatch.setattr(planning, "record", lambda *a: recorded.append(a) or trace.record(*a))
    model, loss, x = Net(masked_to_the_longest), CertifiedLoss(0.05), sequences(4, 5)
    y = torch.tensor([0, 1, 2, 0])
    for lengths in (*LENGTHS, *LENGTHS):
        found = loss(model, (x, lengths), y)
        torch.testing.assert_close(found, loss(Net(masked), (x, lengths), y), rtol=0, atol=1e-9)
        count = sum(call[0] is model for call in recorded)
    assert count <= 2 * len(LENGTHS)  # a batch whose longest samples were not recorded takes two


class Kept(Net):
    """Leaves out words that a buffer names, which may be others at every step."""

    def __init__(self):
        super().__init__(None)
        self.register_buffer("keep", torch.tensor([True, True, True, False, True]))

    def forward(self, tokens):
        return self.head(self.rnn(self.words(tokens[:, self.keep]))[0][:, -1])


@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_losses_trace_anew_where_a_buffer_gives_other_sizes(method):
    model, loss, tokens = (
        Kept(),
        CertifiedLoss(0.05, method=method),
        torch.arange(20).view(4, 5) % 7,
    )
    y = torch.tensor([0, 1, 2, 0])
    for keep in ([1, 1, 1, 0, 1], [1, 1, 1, 1, 1], [1, 0, 1, 0, 0]):
        twin = Kept()
        for net in (model, twin):
            net.keep.copy_(torch.tensor(keep))
        found = loss(model, tokens, y)
        torch.testing.assert_close(found, CertifiedLoss(0.05, method=method)(twin, tokens, y))


def last_frame(net, x, lengths):
    return net.head(net.rnn(x[:, : lengths.max()])[0][:, -1])


def scaled(net, x, lengths):
    return packed(net, x, lengths) / lengths.double().mean()


def summed(net, x, lengths):
    return packed(net, x, lengths) / lengths.sum()


def as_number(net, x, lengths):
    return packed(net, x[:, : int(lengths.max())], lengths)


def by_a_builtin(net, x, lengths):
    return packed(net, x[:, : max(lengths)], lengths)


REFUSED = {
    "the last frame of the longest": (last_frame, "treats a sample differently when it is alone"),
    "a mean length": (scaled, "treats a sample differently when it is alone"),
    "a sum of lengths": (summed, r"from all samples of the batch .*lengths.sum\(\)"),
    "a Python number": (as_number, r"a size may stay a tensor: x\[:, :lengths.max\(\)\]"),
    "a builtin": (by_a_builtin, r"longest length is lengths.max\(\).item\(\)"),
}


@pytest.mark.parametrize(("code", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("last", [0, 3])
def test_what_makes_samples_depend_on_each_other_is_refused(code, message, last):
    x, lengths = sequences(4, 5), LENGTHS[1].roll(last)  # whichever sample is the longest
    model = Net(code)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=message) as caught:
            bound(model).instance((x, lengths))
        # A loader takes no batch apart whose samples were mixed.
        untraced = code in (as_number, by_a_builtin)
        assert isinstance(caught.value, MixedSamplesError) is not untraced
