"""Noise below the peak of every sample: a ball of each sample's own size."""

import pytest
import torch

from popqorn_train import (
    CertifiedLoss,
    LpBall,
    PeakBox,
    certified_radius,
    certify,
    certify_loader,
    frame_radii,
)
from tests.problems import build, predicted, sequences


def problem(dtype=torch.float64):
    model, x = build("gru").to(dtype), sequences(3, 4).to(dtype)
    x = x * torch.tensor([1.0, 0.01, 7.0], dtype=dtype)[:, None, None]
    return model, x, predicted(model, x), x.abs().amax((1, 2))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", ["ibp", "popqorn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_ball_of_that_share_of_every_peak(method, dtype):
    model, x, y, peak = problem(dtype)
    masks = {"frames": torch.arange(4) != 1, "features": torch.arange(x.shape[2]) != 0}
    for options in ({}, masks):
        found = certify(model, x, y, PeakBox(0.03, **options), method=method)
        ball = certify(model, x, y, LpBall(0.03 * peak, **options), method=method)
        torch.testing.assert_close(found.margins, ball.margins)
    shares = torch.tensor([0.01, 0.02, 0.03])
    found = certify(model, x, y, PeakBox(shares), method=method)
    ball = certify(model, x, y, LpBall(shares * peak), method=method)
    torch.testing.assert_close(found.margins, ball.margins)


def test_the_share_that_is_certified_is_the_radius_over_the_peak():
    model, x, y, peak = problem()
    options = {"method": "crown-ibp", "rtol": 1e-4}
    share = certified_radius(model, x, y, box=PeakBox(), **options)
    radius = certified_radius(model, x, y, **options)
    torch.testing.assert_close(share, (radius / peak).clamp(max=1), rtol=1e-3, atol=0)
    frames = frame_radii(model, x, y, box=PeakBox(), **options)
    alone = frame_radii(model, x, y, **options) / peak[:, None]
    torch.testing.assert_close(frames, alone.clamp(max=1), rtol=1e-3, atol=0)


def test_samples_keep_their_own_peaks_in_batches_of_a_loader():
    model, x, y, _ = problem()
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    rows = certify_loader(model, batches, box=PeakBox(), method="ibp", progress=False)
    whole = certified_radius(model, x, y, box=PeakBox(), method="ibp", rtol=1e-2)
    radii = torch.tensor([row.radius for row in rows], dtype=torch.float64)
    torch.testing.assert_close(radii, whole, rtol=2e-2, atol=0)
    assert {row.measure for row in rows} == {"level"}
    x[1, 0, 0] = torch.nan
    with pytest.warns(UserWarning, match="cannot be certified"):
        kept = certified_radius(model, x, y, box=PeakBox(), method="ibp", rtol=1e-2)
    torch.testing.assert_close(kept[[0, 2]], whole[[0, 2]])


def test_losses_take_it():
    model, x, y, peak = problem()
    loss = CertifiedLoss(0.02, box=PeakBox())(model, x, y)
    torch.testing.assert_close(loss, CertifiedLoss(0.02 * peak)(model, x, y))
    loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_silence_does_not_move():
    model, x, y, _ = problem()
    silent = torch.zeros_like(x)
    y = predicted(model, silent)
    found = certify(model, silent, y, PeakBox(0.5))
    torch.testing.assert_close(found.margins, certify(model, silent, y, LpBall(0.0)).margins)


def test_a_share_above_the_peak_is_refused():
    with pytest.raises(ValueError, match="`share` must be a number from 0 to 1"):
        PeakBox(1.5)
    assert repr(PeakBox(0.1)).startswith("PeakBox(share=0.1")
