"""Spectrograms: the same bounds however they are written, those of one convex function a filter.

B: batch, L: samples of a wave, N: samples of a frame, F: frequencies, K: filters.
"""

import functools
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from popqorn_train import CertifiedLoss, LpBall, UnsupportedModelError, bound, certify, logit_bounds
from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.bounds.quadratic import Quadratic
from popqorn_train.perturbations.peak_box import PeakBox
from tests.problems import F64, METHODS

B, L, N, K = 2, 18, 8, 3
F = N // 2 + 1
BALLS = {
    "box": LpBall(0.05),
    "cut": LpBall(0.05, low=-0.6, high=0.6),
    "ball": LpBall(0.15, p=2, scope="sequence"),
    "peak": PeakBox(0.05),
}


class Spoken(nn.Module):
    """Filters of a spectrogram, which a function works out, before a GRU."""

    def __init__(self, energies=None, *, learned=False, **settings):
        super().__init__()
        self.settings = {"hop_length": 4, "center": False, "return_complex": True, **settings}
        generator = torch.Generator().manual_seed(0)
        window = torch.hann_window(self.settings.get("win_length", N), dtype=F64) + 0.1
        self.window = nn.Parameter(window, requires_grad=learned)
        self.filters = nn.Parameter(torch.rand(F, K, dtype=F64, generator=generator))
        self.energies = energies or filtered
        self.rnn, self.head = nn.GRU(K, 4, batch_first=True), nn.Linear(4, 3)
        self.double().eval()

    def spectrum(self, x):
        return torch.stft(x, N, window=self.window, **self.settings)

    def forward(self, x):
        features = torch.log(self.energies(self, x) + 0.1)
        return self.head(self.rnn(features)[0][:, -1])


def filtered(net, x):
    return (net.spectrum(x).abs() ** 2).mT @ net.filters


def by_products(net, x):
    angle = 2 * torch.pi / N * torch.outer(torch.arange(N).double(), torch.arange(F))
    matrix = torch.cat([angle.cos(), -angle.sin()], 1) * net.window[:, None]
    filters = torch.cat([net.filters, net.filters])
    return (x.unfold(-1, N, 4) @ matrix).square() @ filters


def like_torchaudio(net, x):
    """As Spectrogram and MelScale of torchaudio."""
    shape = x.size()
    spectrum = net.spectrum(x.reshape(-1, shape[-1]))
    spectrum = spectrum.reshape(shape[:-1] + spectrum.shape[-2:])
    spectrum /= net.window.pow(2.0).sum().sqrt()
    powers = spectrum.abs().pow(2.0) * net.window.pow(2.0).sum().item()
    return torch.matmul(powers.transpose(-1, -2), net.filters).transpose(-1, -2).transpose(1, 2)


def squares_of(spectrum):
    return spectrum.real**2 + spectrum.imag**2


def itself(x):
    return x * x


FORMS = {
    "absolute values": filtered,
    "torchaudio": like_torchaudio,
    "from the left": lambda net, x: (net.filters.T @ net.spectrum(x).abs().square()).mT,
    "turned before": lambda net, x: net.spectrum(x).transpose(1, 2).abs() ** 2 @ net.filters,
    "turned between": lambda net, x: net.spectrum(x).abs().permute(0, 2, 1) ** 2 @ net.filters,
    "times itself": lambda net, x: itself(net.spectrum(x).abs()).mT @ net.filters,
    "by parts": lambda net, x: squares_of(net.spectrum(x)).mT @ net.filters,
    "as real": lambda net, x: torch.view_as_real(net.spectrum(x).mT).pow(2).sum(-1) @ net.filters,
    "scaled": lambda net, x: ((-2 * net.spectrum(x)).abs() ** 2).mT @ net.filters / 4,
    "einsum": lambda net, x: torch.einsum(
        "bft,fk->btk", net.spectrum(x).abs().square(), net.filters
    ),
    "einsum from the left": lambda net, x: (
        torch.einsum("kf,bft->bkt", net.filters.T, net.spectrum(x).abs().square()).mT
    ),
    "a layer": lambda net, x: nn.functional.linear((net.spectrum(x).abs() ** 2).mT, net.filters.T),
}


SETTINGS = {
    "centred": {"center": True},
    "zeros around": {"center": True, "pad_mode": "constant"},
    "replicated": {"center": True, "pad_mode": "replicate"},
    "a short window": {"win_length": 5},
    "normalised": {"normalized": True},
    "another step": {"hop_length": 3},
    "the usual step": {"hop_length": None},
}


def wave(count=B):
    generator = torch.Generator().manual_seed(3)
    return (0.4 * torch.randn(count, L, dtype=F64, generator=generator)).clamp(-0.6, 0.6)


@functools.cache
def problem(form="absolute values", setting=None):
    torch.manual_seed(0)
    return Spoken(FORMS.get(form, by_products), **SETTINGS.get(setting, {}))


def points(x, ball, count):
    generator = torch.Generator().manual_seed(1)
    d = torch.randn(count, *x.shape, dtype=F64, generator=generator)
    if isinstance(ball, PeakBox):
        return x + ball.share * x.abs().amax(1, keepdim=True) * d.sign()
    if ball.p == math.inf:
        moved = x + ball.epsilon * d.sign() * torch.rand(count, 1, 1, generator=generator) ** 0.1
        return moved if ball.low is None else moved.clamp(ball.low, ball.high)
    return x + ball.epsilon * d / torch.linalg.vector_norm(d, dim=-1, keepdim=True)


def nodes(net, x, kind):
    graph = bound(net).instance(x).graph(LpBall(0.05))
    return [node for node in ancestors(graph) if isinstance(node, kind)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BALLS)
def test_no_point_leaves_the_bounds(name, method):
    net, x, ball = problem("torchaudio", "centred"), wave(), BALLS[name]
    lower, upper = logit_bounds(net, x, ball, method=method)
    with torch.no_grad():
        values = net(points(x, ball, 400).flatten(0, 1)).view(400, B, -1)
    assert (lower <= values).all()
    assert (values <= upper).all()


@pytest.mark.one_in(4)
@pytest.mark.parametrize("form", FORMS)
def test_however_it_is_written_the_bounds_are_those_of_one_function_a_filter(form):
    x, other = wave(), problem("by products")
    net = problem(form)
    with torch.no_grad():
        torch.testing.assert_close(net(x), other(x), rtol=0, atol=1e-12)
    for method in ("ibp", "popqorn-fast"):
        expected = logit_bounds(other, x, LpBall(0.05), method=method)
        found = logit_bounds(net, x, LpBall(0.05), method=method)
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-9)
    (sums,) = nodes(net, x, Quadratic)
    assert sums.shape == (3, K)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_is_that_of_torch(setting):
    net, x = problem(setting=setting), wave()
    lower, upper = logit_bounds(net, x, LpBall(0.0), method="ibp")
    with torch.no_grad():
        torch.testing.assert_close(lower, net(x), rtol=0, atol=1e-10)
        torch.testing.assert_close(upper, net(x), rtol=0, atol=1e-10)
        values = net(points(x, BALLS["box"], 200).flatten(0, 1)).view(200, B, -1)
    lower, upper = logit_bounds(net, x, BALLS["box"], method="popqorn-fast")
    assert (lower <= values).all()
    assert (values <= upper).all()


def apart(net, x):
    """Filters with negative weights have no convex function; powers and roots have bounds."""
    magnitude = net.spectrum(x).abs()
    powers = magnitude**2
    return (powers[:, :K] - 0.1 * powers[:, 1 : K + 1]).mT.square() + magnitude[:, :K].mT


def chosen(net, x):
    """Frequencies in another order, some twice, and the last frame left out."""
    powers = net.spectrum(x)[..., :-1].abs()[:, [2, 0, 2, 1, 4]] ** 2
    return powers.mT @ net.filters


def mixed(net, x):
    """Real parts alone, and squares of parts that are no power."""
    spectrum = net.spectrum(x)
    return (spectrum.real[:, :K] ** 2 + spectrum.imag[:, 1 : K + 1] ** 2).mT


def emphasised(net, x):
    """Windows of what is no longer the input."""
    return (net.spectrum(x[:, 1:] - 0.97 * x[:, :-1]).abs() ** 2).mT @ net.filters


def test_filters_of_both_signs_are_bounded_truly():
    torch.manual_seed(0)
    net, x = (
        Spoken(lambda net, x: ((net.filters - 0.5).T @ net.spectrum(x).abs() ** 2).mT ** 2),
        wave(),
    )
    assert [node.shape[1] for node in nodes(net, x, Quadratic)] == [F]
    lower, upper = logit_bounds(net, x, BALLS["box"])
    with torch.no_grad():
        values = net(points(x, BALLS["box"], 400).flatten(0, 1)).view(400, B, -1)
    assert (lower <= values).all()
    assert (values <= upper).all()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("form", [apart, chosen, mixed, emphasised])
def test_what_else_is_made_of_a_spectrum_is_bounded_truly(form):
    torch.manual_seed(0)
    net, x = Spoken(form), wave()
    with torch.no_grad():
        values = net(points(x, BALLS["box"], 400).flatten(0, 1)).view(400, B, -1)
        clean = net(x)
    for method in ("ibp", "popqorn"):
        lower, upper = logit_bounds(net, x, BALLS["box"], method=method)
        assert (lower <= values).all()
        assert (values <= upper).all()
    for side in logit_bounds(net, x, LpBall(0.0), method="ibp"):
        torch.testing.assert_close(side, clean, rtol=0, atol=1e-9)


def test_chosen_frequencies_are_one_function_a_filter_and_other_sums_are_not():
    x = wave()
    assert len(nodes(Spoken(chosen), x, Quadratic)) == 1
    assert not nodes(Spoken(mixed), x, Quadratic)


def test_a_tone_that_moves_as_a_whole_has_the_power_of_its_closed_form():
    """A frame of one sample: |s|^2 = (w x)^2, whose range is that of a square."""
    net = Spoken(lambda net, x: torch.stft(x, 1, 1, 1, net.window[:1], center=False,
                                           return_complex=True).abs().square().mT)  # fmt: skip
    net.rnn = nn.GRU(1, 4, batch_first=True).double()
    x, w = wave(), net.window[0].item()
    graph = bound(net).instance(x).graph(LpBall(0.05))
    sums = next(node for node in ancestors(graph) if isinstance(node, Quadratic))
    found = enclose(graph, backward=False).ranges[sums]
    ends = torch.stack([x - 0.05, x + 0.05])
    high = (w * ends).square().amax(0)[..., None]
    low = torch.where((ends[0] < 0) & (ends[1] > 0), 0.0, (w * ends).square().amin(0))[..., None]
    torch.testing.assert_close(found.upper, high, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.lower, low, rtol=1e-9, atol=1e-12)


def test_float32_holds_float64_give_or_take_rounding():
    net, x = problem("torchaudio", "centred"), wave()
    single = Spoken(like_torchaudio, center=True).float()
    single.load_state_dict(net.state_dict())
    for method in ("ibp", "popqorn-fast"):
        double = logit_bounds(net, x, LpBall(0.05), method=method)
        found = logit_bounds(single, x.float(), LpBall(0.05), method=method)
        for one, two in zip(found, double, strict=True):
            torch.testing.assert_close(one.double(), two, rtol=1e-3, atol=1e-4)


def test_a_sample_alone_and_a_wave_of_another_length_have_their_bounds():
    net, x = problem("torchaudio", "centred"), wave(3)
    layer = bound(net)
    every = logit_bounds(layer, x, LpBall(0.05), method="popqorn-fast")
    for given, expected in ((x[1:2], every), (x[:, :13], None)):
        found = logit_bounds(layer, given, LpBall(0.05), method="popqorn-fast")
        wanted = expected or logit_bounds(net, given, LpBall(0.05), method="popqorn-fast")
        for one, two in zip(found, wanted, strict=True):
            two = two[1:2] if expected else two
            torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["window", "filters"])
def test_learned_windows_and_filters_get_the_gradient_of_their_bounds(name):
    torch.manual_seed(0)
    net, x, y = Spoken(learned=True), wave(), torch.tensor([0, 1])
    loss, weight = CertifiedLoss(epsilon=0.02), net.get_parameter(name)
    value = loss(net, x, y)
    (gradient,) = torch.autograd.grad(value, weight)
    step = 1e-6
    with torch.no_grad():
        weight.mul_(1 + step)
        more = loss(net, x, y)
    expected = step * (gradient * weight).sum()
    torch.testing.assert_close(more - value.detach(), expected.detach(), rtol=2e-2, atol=1e-9)


class Packed(Spoken):
    """Waves of different lengths, of which whole frames count."""

    def forward(self, x, lengths):
        features = torch.log(filtered(self, x) + 0.1)
        frames = (lengths - N) // 4 + 1
        packed = pack_padded_sequence(features, frames, True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][-1])


def test_a_padded_wave_has_the_bounds_of_its_own_length():
    torch.manual_seed(0)
    net, x, lengths = Packed(), wave(), torch.tensor([18, 13])
    x[1, 13:] = 0
    both = logit_bounds(net, (x, lengths), LpBall(0.05))
    alone = logit_bounds(net, (x[1:, :13], lengths[1:]), LpBall(0.05))
    for one, two in zip(both, alone, strict=True):
        torch.testing.assert_close(one[1:], two, rtol=0, atol=1e-9)


class Channels(Spoken):
    """Waves ``(B, channels, L)``, of which the channels are read one after another."""

    def forward(self, x):
        features = torch.log(self.energies(self, x.flatten(0, 1)) + 0.1)
        return self.head(self.rnn(features.view(len(x), -1, K))[0][:, -1])


def test_one_channel_may_have_an_axis_of_its_own():
    torch.manual_seed(0)
    net, flat = Channels(like_torchaudio), Spoken(like_torchaudio)
    flat.load_state_dict(net.state_dict())
    found = logit_bounds(net, wave()[:, None], LpBall(0.05))
    for one, two in zip(found, logit_bounds(flat, wave(), LpBall(0.05)), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:stft with return_complex=False:UserWarning")
@pytest.mark.filterwarnings("ignore:A window was not provided:UserWarning")
def test_the_older_form_with_an_axis_of_both_parts_and_no_window():
    def older(net, x):
        parts = torch.stft(x, N, 4, center=False, return_complex=False)
        return parts.pow(2).sum(-1).mT @ net.filters

    torch.manual_seed(0)
    net, newer = Spoken(older), Spoken()
    newer.load_state_dict(net.state_dict())
    nn.init.ones_(newer.window)
    for one, two in zip(
        *[logit_bounds(n, wave(), LpBall(0.05)) for n in (net, newer)], strict=True
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


REFUSED = {
    "conj": lambda s: (s * s.conj()).real,
    "angle": lambda s: s.angle(),
    "exp": lambda s: s.exp().real,
    "sum": lambda s: (s - s.sum(1, keepdim=True)).real,
    "add": lambda s: (s + 1).abs(),
    "complex": lambda s: (s * 1j).real,
    "rotation": lambda s: (s * torch.polar(*torch.ones(2, 1, dtype=F64))).real,
    "mask": lambda s: (s * torch.ones(F, 1, dtype=F64)).abs(),
    "reciprocal": lambda s: (1 / s).abs(),
    "cast": lambda s: s.to(torch.complex64).abs().double(),
    "real cast": lambda s: torch.view_as_complex(torch.view_as_real(s)).abs(),
    "adjoint": lambda s: s.adjoint().mT.real,
    "samples": lambda s: s.transpose(0, 1).reshape(s.shape).abs(),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Casting complex values:UserWarning")
def test_what_else_is_done_with_complex_numbers_is_refused_with_a_way_out(name):
    torch.manual_seed(0)
    net = Spoken(lambda net, x: REFUSED[name](net.spectrum(x))[:, :K].mT.abs())
    with pytest.raises(UnsupportedModelError) as error:
        logit_bounds(net, wave(), LpBall(0.05))
    assert any(text in str(error.value) for text in ("abs()", "real number", "pairs", "sample"))


def test_several_waves_a_sample_are_refused():
    torch.manual_seed(0)
    net = Channels(like_torchaudio)
    with pytest.raises(UnsupportedModelError):
        logit_bounds(net, wave(4).unflatten(0, (2, 2)), LpBall(0.05))


def test_what_is_deployed_is_refused():
    torch.manual_seed(0)
    net, x = Spoken().float(), wave().float()
    with pytest.raises(UnsupportedModelError, match="stft"):
        certify(net, x, torch.zeros(B).long(), LpBall(0.01), confirm="deployed")


def test_silence_is_bounded():
    net, x = problem(), torch.zeros(B, L, dtype=F64)
    lower, upper = logit_bounds(net, x, LpBall(0.05))
    with torch.no_grad():
        values = net(points(x, BALLS["box"], 100).flatten(0, 1)).view(100, B, -1)
    assert (lower <= values).all()
    assert (values <= upper).all()


def test_reflected_samples_count_twice():
    """In a ball, a sample that two entries of a frame read moves both."""
    net, x = problem("torchaudio", "centred"), wave()
    ball = LpBall(0.3, p=2, scope="sequence")
    d = torch.zeros(L, B, L, dtype=F64)
    d[torch.arange(L), :, torch.arange(L)] = 0.3
    lower, upper = logit_bounds(net, x, ball, method="ibp")
    with torch.no_grad():
        for sign in (-1, 1):
            values = net((x + sign * d).flatten(0, 1)).view(L, B, -1)
            assert (lower <= values).all()
            assert (values <= upper).all()


def test_roots_of_powers_are_activations_and_their_squares_are_not():
    x = wave()
    roots = Spoken(lambda net, x: net.spectrum(x).abs()[:, :K].mT)
    assert len([n for n in nodes(roots, x, Activation) if n.shape == (3, K)]) == 2  # and the log
    assert len([n for n in nodes(problem(), x, Activation) if n.shape == (3, K)]) == 1
