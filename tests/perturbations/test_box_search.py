"""The largest share of a box that is certified: one question in other units."""

from dataclasses import replace

import pytest
import torch

from popqorn_train import Box, LpBall, certified_radius, certify, certify_loader, search_radius
from popqorn_train import empirical_radius as attacked
from popqorn_train.certificates.frames import frame_radii
from tests.problems import F64, METHODS, build, predicted, sequences

SOME = ("crown-ibp", "popqorn")


def problem(cell="tanh", batch=3, time=4):
    model, x = build(cell), sequences(batch, time, seed=2)
    return model, x, predicted(model, x)


def uneven(x, size):
    """A box around x whose sides all differ; the second feature stays."""
    generator = torch.Generator().manual_seed(0)
    down, up = size * torch.rand(2, *x.shape, generator=generator, dtype=F64)
    down[..., 1], up[..., 1] = 0, 0
    return Box(x - down, x + up)


@pytest.mark.parametrize("method", METHODS)
def test_shares_of_a_symmetric_box_are_radii_in_other_units(method):
    model, x, y = problem()
    shares = certified_radius(model, x, y, box=Box(x - 2.0, x + 2.0), method=method)
    radii = certified_radius(model, x, y, method=method, max_radius=2.0)
    torch.testing.assert_close(2 * shares, radii, rtol=3e-3, atol=0)
    assert (shares > 0).all()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", SOME)
@pytest.mark.parametrize("cell", ["tanh", "gru"])
def test_what_is_found_is_the_largest_share_that_certify_proves(cell, method):
    model, x, y = problem(cell)
    box = uneven(x, 4.0)
    share = certified_radius(model, x, y, box=box, method=method)
    assert certify(model, x, y, box.sized(share), method=method).certified.all()
    assert not certify(model, x, y, box.sized(1.01 * share), method=method).certified.any()
    broke = attacked(model, x, y, box=box)
    assert ((broke >= share) | broke.isinf()).all()


def test_a_share_is_the_same_alone_and_in_a_batch_whatever_the_form_of_the_ends():
    model, x, y = problem()
    box = uneven(x, 4.0)
    shares = certified_radius(model, x, y, box=box)
    one = Box(box.lower[1:2], box.upper[1:2])
    alone = certified_radius(model, x[1:2], y[1:2], box=one)
    torch.testing.assert_close(alone, shares[1:2], rtol=2e-3, atol=0)
    ends = [-5.0, -6.0, -7.0]
    listed = certified_radius(model, x, y, box=Box(ends, 5.0))
    lower = torch.tensor(ends, dtype=F64).expand_as(x)
    tensors = certified_radius(model, x, y, box=Box(lower, torch.full_like(x, 5.0)))
    torch.testing.assert_close(listed, tensors)


def test_a_box_that_is_proved_as_a_whole_has_the_share_1_and_a_wrong_sample_0():
    model, x, y = problem()
    y[0] = (y[0] + 1) % 3
    found = search_radius(model, x, y, Box(x - 1e-3, x + 1e-3))
    assert found.radius.tolist() == [0, 1, 1]
    assert found.capped.tolist() == [False, True, True]
    assert search_radius(model, x, y, Box(x, x)).radius.tolist() == [0, 1, 1]


def test_shares_in_float32_are_proved_in_float64():
    model, x, y = problem("gru")
    box = Box(*[end.float() for end in uneven(x, 4.0).ends])
    share = certified_radius(model.float(), x.float(), y, box=box)
    assert share.dtype == torch.float32
    exact = certify(model.double(), x.float().double(), y, box.sized(share.double()))
    assert exact.certified.all()


def test_the_gradient_of_a_share_is_that_of_the_radius():
    model, x, y = problem("gru")
    gradients = []
    for factor, options in ((2.0, {"box": Box(x - 2.0, x + 2.0)}), (1.0, {"max_radius": 2.0})):
        options |= {"method": "crown-ibp", "differentiable": True, "rtol": 1e-6}
        found = factor * certified_radius(model, x, y, **options)
        gradients.append(torch.autograd.grad(found.sum(), list(model.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_frames_have_shares_of_their_own():
    model, x, y = problem()
    box = uneven(x, 4.0)
    shares = frame_radii(model, x, y, box=box, method="crown-ibp")
    for t in range(x.shape[1]):
        alone = torch.arange(x.shape[1]) == t
        one = certified_radius(model, x, y, box=replace(box, frames=alone), method="crown-ibp")
        torch.testing.assert_close(shares[:, t], one, rtol=3e-3, atol=0)


def test_what_a_mask_leaves_out_stays_wherever_it_is():
    model, x, y = problem("gru")
    x[:, 1], x[:, :, 2] = 7.0, -8.0  # outside the box
    y = predicted(model, x)
    frames, features = [True, False, True, True], [True, True, False]
    box = Box(-5.0, [5.0, 6.0, 7.0], frames=frames, features=features)
    mask = torch.tensor(frames)[:, None] & torch.tensor(features)
    ends = (torch.where(mask, torch.as_tensor(end).to(x), x) for end in box.ends)
    same = Box(*ends)
    shares = certified_radius(model, x, y, box=box)
    torch.testing.assert_close(shares, certified_radius(model, x, y, box=same))
    region = box.around(x)
    assert (((region.down > 0) | (region.up > 0)) == mask).all()
    picked = box.pick(torch.tensor([1]), len(x)).around(x[1:2])
    torch.testing.assert_close(picked.up, region.up[1:2])
    own = torch.tensor([frames, [True] * 4, frames[::-1]])
    each = replace(same, frames=own)
    torch.testing.assert_close(
        each.pick(torch.tensor([2]), 3).around(x[2:]).up, each.around(x).up[2:]
    )
    with pytest.raises(TypeError, match="`features` must be a boolean tensor or array"):
        Box(0.0, 1.0, features=[0, 1])
    with pytest.raises(ValueError, match="`frames` marks nothing"):
        Box(0.0, 1.0, frames=[False, False])


def test_the_length_of_a_change_is_the_share_that_it_needs():
    _, x, _ = problem()
    box = uneven(x, 0.5)
    used = torch.rand(x.shape, generator=torch.Generator().manual_seed(4), dtype=F64)
    region = box.around(x)
    change = torch.where(used > 0.5, used * region.up, -used * region.down)
    used[..., 1] = 0  # has no room
    torch.testing.assert_close(box.length(change, region), used.amax((1, 2)))
    part = box.sized(torch.tensor([0.25, 0.5, 1.0], dtype=F64))
    torch.testing.assert_close(part.length(0.2 * change, part.around(x)), 0.2 * used.amax((1, 2)))


def test_a_share_for_each_sample_is_that_of_the_sample():
    model, x, y = problem()
    box, share = uneven(x, 0.5), torch.tensor([0.1, 0.5, 1.0], dtype=F64)
    found = certify(model, x, y, box.sized(share)).margins
    for at, one in enumerate(share.tolist()):
        alone = certify(model, x, y, box.sized(one)).margins[at]
        torch.testing.assert_close(found[at], alone)
    with pytest.raises(ValueError, match=r"`share` must be a float or \(3,\), got \(2,\)"):
        certify(model, x, y, box.sized(share[:2]))


REFUSED = {
    "another norm": ({"box": Box(-9.0, 9.0), "p": 2}, ValueError, "leave out p, low, high"),
    "a domain": ({"box": Box(-9.0, 9.0), "low": 0.0}, ValueError, "leave out p, low, high"),
    "a ball": ({"box": LpBall(0.1)}, TypeError, "`box` must be a Box or None, got LpBall"),
    "a share": ({"box": Box(-9.0, 9.0, 0.1)}, ValueError, "`share` of the box must be left at 1"),
    "above 1": ({"box": Box(-9.0, 9.0), "max_radius": 2}, ValueError, "shares of the box.* got 2"),
}


@pytest.mark.parametrize(("options", "error", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("search", [certified_radius, attacked])
def test_a_box_that_cannot_be_searched_is_refused(search, options, error, message):
    with pytest.raises(error, match=message):
        search(*problem(), **options)


def test_epsilons_of_a_box_are_shares_and_are_reached():
    model, x, y = problem()
    with pytest.raises(ValueError, match=r"`epsilons` must be shares of the box.* got 1.5"):
        certified_radius(model, x, y, box=Box(-9.0, 9.0), epsilons=(0.5, 1.5))
    box, epsilons = uneven(x, 4.0), (0.05, 0.1, 0.3)
    share = certified_radius(model, x, y, box=box, epsilons=epsilons, rtol=0.5)
    for epsilon in epsilons:
        proved = certify(model, x, y, box.sized(epsilon)).certified
        assert ((share >= epsilon) >= proved).all()


def test_rows_of_a_loader_say_that_they_hold_shares():
    model, x, y = problem(batch=6)
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    box = Box(-9.0, [9.0, 8.0, 7.0])
    rows = certify_loader(model, batches, box=box, method="ibp", progress=False, attack=True)
    expected = certified_radius(model, x, y, box=box, method="ibp")
    found = torch.tensor([row.radius for row in rows], dtype=F64)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=0)
    assert {row.measure for row in rows} == {"share"}
    assert "median share" in repr(rows)
    assert "radius" not in repr(rows)
    assert "measure" in rows._repr_html_()
    with pytest.raises(ValueError, match="`ball` is certified as it is, and of `box`"):
        certify_loader(model, batches, LpBall(0.1), box=box)
    with pytest.raises(ValueError, match="`ball` must have one size for all batches"):
        certify_loader(model, batches, box=Box(x[:4] - 1, 9.0))
