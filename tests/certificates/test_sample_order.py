"""Forwards that sort a batch are bounded as those that need no order."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from popqorn_train import (
    CertifiedLoss,
    LpBall,
    Substitutions,
    certified_radius,
    certify,
    certify_loader,
    frame_radii,
    logit_bounds,
)
from popqorn_train.certificates.pgd import attack
from tests.problems import METHODS
from tests.sorting import BALL, TIME, WORDS, batch, build, labels, outputs, plain, states


def by_index(net, x, lengths):
    falling, order = lengths.sort(descending=True)
    return net.head(states(net, x[order], falling)[order.sort()[1]])


def by_index_select(net, x, lengths):
    order = torch.argsort(lengths, descending=True)
    last = states(net, x.index_select(0, order), lengths[order].cpu())
    return net.head(last.index_select(0, order.argsort()))


def by_gather(net, x, lengths):
    falling, order = torch.sort(lengths, 0, True)
    last = states(net, torch.gather(x, 0, order[:, None, None].expand_as(x)), falling)
    back = order.argsort()[:, None].expand(-1, last.shape[1])
    return net.head(last.gather(0, back))


def by_list(net, x, lengths):
    falling, order = lengths.sort(descending=True)
    return net.head(states(net, x[order], falling.tolist()))[torch.argsort(order)]


def sorted_twice(net, x, lengths):
    first = lengths.argsort()
    rising = lengths[first]
    second = rising.argsort(descending=True)
    last = states(net, x[first][second], rising[second])
    return net.head(last[second.argsort()][first.argsort()])


def turned(net, x, lengths):
    last = states(net, x.flip(0), lengths.flip(0), enforce_sorted=False).flip(0)
    rolled = states(net, x.roll(1, 0), lengths.roll(1, 0), enforce_sorted=False)
    return net.head(last + rolled.roll(-1, 0))


def turned_plain(net, x, lengths):
    return net.head(2 * states(net, x, lengths, enforce_sorted=False))


def layers_by_index(net, x, lengths):
    falling, order = lengths.sort(descending=True)
    _, (h_n, c_n) = net.rnn(pack_padded_sequence(x[order], falling, batch_first=True))
    back = order.argsort()
    return net.head(h_n[:, back][-1] - c_n.index_select(1, back)[0])


def layers_plain(net, x, lengths):
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    _, (h_n, c_n) = net.rnn(packed)
    return net.head(h_n[-1] - c_n[0])


def mean(net, x, lengths):
    falling, order = lengths.sort(descending=True)
    out, valid = outputs(net, x[order], falling)
    return net.head((out.sum(1) / valid[:, None])[order.argsort()])


def mean_plain(net, x, lengths):
    out, _ = outputs(net, x, lengths, enforce_sorted=False)
    return net.head(out.sum(1) / lengths[:, None])


def last_frame(net, x, lengths):
    falling, order = lengths.sort(descending=True)
    out, valid = outputs(net, x[order], falling)
    sorted_last = out[torch.arange(len(x)), valid - 1][order.argsort()]
    return net.head((sorted_last + out[order.argsort(), lengths - 1]) / 2)


def beside(net, x, lengths):
    falling, order = lengths.sort(descending=True)
    start = (net.start * lengths[:, None])[:, order].contiguous()
    packed = pack_padded_sequence(x[order], falling, batch_first=True)
    logits = net.head(net.rnn(packed, start)[1][-1]) * falling[:, None] + x[order].sum(1)
    return logits[order.argsort()] + x[:, 0]


def beside_plain(net, x, lengths):
    start = (net.start * lengths[:, None]).contiguous()
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return net.head(net.rnn(packed, start)[1][-1]) * lengths[:, None] + x.sum(1) + x[:, 0]


def time_first(net, x, lengths):
    falling, order = lengths.sort(descending=True)
    out, _ = outputs(net, x[:, order], falling, batch_first=False)
    return net.head(out[:, order.argsort()].sum(0))


def time_first_plain(net, x, lengths):
    return net.head(outputs(net, x, lengths, batch_first=False, enforce_sorted=False)[0].sum(0))


def channels(net, x, lengths):
    falling, order = lengths.sort(descending=True)
    return net.head(states(net, x[order].transpose(1, 2), falling)[order.argsort()])


def channels_plain(net, x, lengths):
    return plain(net, x.transpose(1, 2), lengths)


def tokens(net, x, lengths):
    falling, order = lengths.sort(descending=True)
    return net.head(states(net, net.words(x[order]), falling)[order.argsort()])


def tokens_counted(net, x, lengths):
    falling, order = (x != 0).sum(1).sort(descending=True)
    return net.head(
        states(net, net.words(input=x.index_select(0, order)), falling)[order.argsort()]
    )


def tokens_plain(net, x, lengths):
    return plain(net, net.words(x), lengths)


def one_logit(net, x, lengths):
    falling, order = lengths.sort(descending=True)
    return net.one(states(net, x[order], falling)).sigmoid()[order.argsort()]


def one_logit_plain(net, x, lengths):
    return net.one(states(net, x, lengths, enforce_sorted=False)).sigmoid()


SORTED = {
    "index": (by_index, plain, {}),
    "index_select": (by_index_select, plain, {"cell": "tanh"}),
    "gather": (by_gather, plain, {"cell": "lstm"}),
    "list": (by_list, plain, {"cell": "relu"}),
    "both directions": (by_index, plain, {"cell": "tanh", "bidirectional": True, "num_layers": 2}),
    "twice": (sorted_twice, plain, {}),
    "flip and roll": (turned, turned_plain, {}),
    "layers": (layers_by_index, layers_plain, {"cell": "lstm"}),
    "mean": (mean, mean_plain, {}),
    "last frame": (last_frame, plain, {}),
    "other inputs": (beside, beside_plain, {}),
    "time first": (time_first, time_first_plain, {"batch_first": False}),
    "channels": (channels, channels_plain, {}),
    "tokens": (tokens, tokens_plain, {}),
    "counted tokens": (tokens_counted, tokens_plain, {}),
    "one logit": (one_logit, one_logit_plain, {}),
}
every_way = pytest.mark.parametrize("name", SORTED)


def pair(name):
    """A model that sorts, and the same one that needs no order."""
    code, twin, options = SORTED[name]
    model, other = build(code, **options), build(twin, **options)
    other.load_state_dict(model.state_dict())
    return model, other


@torch.no_grad()
def assert_equal(one, two):
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("method", METHODS)
@every_way
def test_a_sorted_batch_has_the_bounds_of_one_that_needs_no_order(name, method):
    model, twin = pair(name)
    for inputs in (batch(name, (4, 3, 1), seed=1), batch(name)):  # sorted first, then not
        torch.testing.assert_close(model(*inputs), twin(*inputs))
        bounds = [logit_bounds(net, inputs, BALL, method=method, probes=0) for net in (model, twin)]
        assert_equal(*bounds)
        y = labels(twin, inputs)
        found = [certify(net, inputs, y, BALL, method=method).margins for net in (model, twin)]
        assert_equal(*[margins.unsqueeze(0) for margins in found])


@pytest.mark.one_in(8)
@pytest.mark.parametrize("name", SORTED)
def test_chunks_and_samples_alone_have_the_bounds_of_the_batch(name):
    model, _ = pair(name)
    inputs = batch(name)
    y, axis = labels(model, inputs), 1 if name == "time first" else 0
    whole = certify(model, inputs, y, BALL, method="crown-ibp").margins
    chunked = certify(model, inputs, y, BALL, method="crown-ibp", max_bytes=1).margins
    assert_equal([whole], [chunked])
    for index in range(len(y)):
        one = torch.tensor([index])
        alone = inputs[0].index_select(axis, one), inputs[1][one]
        found = certify(model, alone, y[one], BALL, method="crown-ibp").margins
        assert_equal([whole[one]], [found])


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", ["index", "mean", "time first", "tokens"])
def test_radii_and_loaders_agree_over_shuffled_batches(name):
    model, twin = pair(name)
    lengths = [(4, 3, 3), (1, 4, 2), (2, 2, 4)]
    batches = [batch(name, some, seed=seed) for seed, some in enumerate(lengths)]
    data = [(inputs, labels(twin, inputs)) for inputs in batches]
    options = {"method": "ibp", "rtol": 1e-3}
    found = [[row.radius for row in certify_loader(net, data, **options)] for net in (model, twin)]
    assert found[0] == pytest.approx(found[1], rel=0, abs=1e-12)
    assert any(radius > 0 for radius in found[0])
    inputs, y = data[1]
    assert_equal(*[[certified_radius(net, inputs, y, method="crown-ibp")] for net in (model, twin)])


@pytest.mark.parametrize("name", ["index", "channels"])
def test_radii_of_frames_agree(name):
    model, twin = pair(name)
    inputs = batch(name, (2, 4, 3))
    y = labels(twin, inputs)
    found = [frame_radii(net, inputs, y, method="ibp", rtol=0.1) for net in (model, twin)]
    assert found[0].shape == (3, TIME)
    assert_equal([found[0]], [found[1]])


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", ["popqorn-tight", "popqorn-tightest"])
def test_samples_that_are_picked_and_bounded_again_stay_the_same(method):
    def whole(net, x, lengths):
        order = lengths.argsort()
        return net.head(net.rnn(x[order])[1][-1][order.argsort()])

    model, twin = build(whole), build(lambda net, x, lengths: net.head(net.rnn(x)[1][-1]))
    inputs = batch()
    y = labels(twin, inputs)
    ball = LpBall(1.1 * certified_radius(twin, inputs, y, rtol=0.1))
    found = [certify(net, inputs, y, ball, method=method).margins for net in (model, twin)]
    assert_equal([found[0]], [found[1]])


@pytest.mark.one_in(3, first=1)
@every_way
def test_no_sampled_point_leaves_the_bounds(name):
    model, _ = pair(name)
    inputs = batch(name)
    if "tokens" in name or name == "one logit":
        y = labels(model, inputs)
        worst = attack(model, inputs, y, BALL, steps=10).margin
        assert (certify(model, inputs, y, BALL).margin <= worst + 1e-12).all()
        return
    bounds = logit_bounds(model, inputs, LpBall(0.2))
    moves = torch.rand(200, *inputs[0].shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        for move in 0.2 * moves.double().where(moves > 0, moves.double().sign()):
            logits = model(inputs[0] + move, inputs[1])
            assert (logits >= bounds.lower - 1e-12).all()
            assert (logits <= bounds.upper + 1e-12).all()


@pytest.mark.parametrize("name", ["index", "other inputs", "tokens"])
def test_a_loss_and_its_gradient_agree(name):
    losses, gradients = [], []
    for net in pair(name):
        loss = CertifiedLoss(0.1, kappa=0.5, alpha=0.5)
        total = loss(net, batch(name, (4, 3, 3)), torch.tensor([0, 1, 2]))
        total = total + loss(net, batch(name), torch.tensor([0, 1, 2, 0, 1]))
        losses.append(total.detach())
        gradients.append(torch.autograd.grad(total, list(net.rnn.parameters())))
    assert_equal([losses[0]], [losses[1]])
    assert_equal(*gradients)


@pytest.mark.parametrize("name", ["tokens", "counted tokens"])
def test_what_is_said_of_single_samples_reaches_them_in_a_sorted_batch_of_tokens(name):
    model, twin = pair(name)
    inputs = batch(name)
    y = labels(twin, inputs)
    generator = torch.Generator().manual_seed(2)
    places = torch.randint(1, WORDS, (*inputs[0].shape, 2), generator=generator)
    places[inputs[0] == 0] = -1  # padding stays, and so do the lengths that are counted
    mask = torch.rand(inputs[0].shape, generator=generator) > 0.4
    epsilon = torch.linspace(0.02, 0.3, len(y)).double()
    budget = torch.tensor([0, 1, 2, 1, 1])
    for ball in (LpBall(epsilon, 2, frames=mask), Substitutions(places, budget)):
        found = [certify(net, inputs, y, ball, method="crown-ibp").margins for net in (model, twin)]
        assert_equal([found[0]], [found[1]])
