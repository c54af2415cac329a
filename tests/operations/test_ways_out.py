"""What has no bound is refused with the form that has one, which computes the same."""

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, UnsupportedModelError, certify, logit_bounds
from tests.problems import sequences

H = 3


class Scanned(nn.Module):
    """A linear recurrence with decays of its own."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(1)
        self.form, self.inner, self.head = form, nn.Linear(3, H), nn.Linear(H, 3)
        self.decay = nn.Parameter(torch.rand(H))
        self.double().eval()

    def forward(self, x):
        return self.head(self.form(self.inner(x), self.decay))


def by_transform(u, decay):
    size, time = 2 * u.size(1), torch.arange(u.size(1))
    kernel = decay ** time[:, None]
    product = torch.fft.rfft(u, size, 1) * torch.fft.rfft(kernel, size, 0)
    return torch.fft.irfft(product, size, 1)[:, u.size(1) - 1]


def by_scan(u, decay):
    return u[:, -1] * torch.cumprod(torch.sigmoid(u), 1)[:, -1] * decay


def by_sums_of_exponentials(u, decay):
    return torch.logcumsumexp(u, 1)[:, -1] * decay


def in_complex_numbers(u, decay):
    h = torch.zeros_like(u[:, 0]) * 1j
    for t in range(u.size(1)):
        h = decay * torch.exp(1j * decay) * h + u[:, t]
    return h.real


def by_matrix(u, decay):
    time = torch.arange(u.size(1))
    lag = time[:, None] - time
    matrix = torch.where(lag >= 0, decay[:, None, None] ** lag.clamp(min=0), 0.0)
    return torch.einsum("hts,bsh->bth", matrix, u)[:, -1]


def by_loop(u, decay):
    h = torch.zeros_like(u[:, 0])
    for t in range(u.size(1)):
        h = decay * h + u[:, t]
    return h


@pytest.mark.parametrize(
    ("form", "way_out"),
    [
        (by_transform, r"torch.einsum.*loop over frames"),
        (by_scan, "loop over frames"),
        (by_sums_of_exponentials, "loop over frames"),
        (in_complex_numbers, "pairs of real ones"),
    ],
)
def test_transforms_scans_and_complex_numbers_are_refused_with_their_loop_form(form, way_out):
    with pytest.raises(UnsupportedModelError, match=way_out):
        logit_bounds(Scanned(form), sequences(2, 4), LpBall(0.1))


def test_the_forms_named_compute_the_same_and_have_the_same_bounds():
    x = sequences(2, 4)
    loop, matrix, transform = map(Scanned, (by_loop, by_matrix, by_transform))
    with torch.no_grad():
        for other in (matrix, transform):
            torch.testing.assert_close(other(x), loop(x), rtol=0, atol=1e-12)
    for method in ("crown-ibp", "popqorn"):
        one, two = (logit_bounds(model, x, LpBall(0.1), method=method) for model in (loop, matrix))
        for side, same in zip(one, two, strict=True):  # affine, so exact
            torch.testing.assert_close(side, same, rtol=0, atol=1e-12)
    assert certify(loop, x, loop(x).argmax(1), LpBall(1e-5)).certified.all()
