"""Rows of the operations on spectra; see rows.py."""

import torch

from tests.operations.rows import F, T


def spectrum(x, size=4, **more):
    window = torch.linspace(0.5, 1.0, size, dtype=x.dtype)
    return torch.stft(x.flatten(1), size, 2, window=window, return_complex=True, **more)


def filters(m, count):
    return m.table.square()[:1].T.expand(-1, count)


SPECTRAL_ROWS = {
    "stft": [
        lambda m, a, b: spectrum(a).abs() ** 2,
        lambda m, a, b: filters(m, 3) @ spectrum(a + b, center=False).abs().square(),
        lambda m, a, b: (spectrum(a).abs().pow(2.0).mT + 0.1).log(),
        lambda m, a, b: spectrum(a, normalized=True, pad_mode="constant").mT.abs(),
        lambda m, a, b: spectrum(a, onesided=False)[:, 1:].abs(),
        lambda m, a, b: b.flatten(1).stft(5, 2, 3, m.bias, return_complex=True).imag,
    ],
    "real": [
        lambda m, a, b: torch.real(spectrum(a)),
        lambda m, a, b: spectrum(a).real ** 2 + spectrum(a).imag.square(),
    ],
    "imag": [
        lambda m, a, b: torch.imag(-2 * torch.ones(1) * spectrum(a)),
        lambda m, a, b: (spectrum(b) / 3)[..., :-1].imag,
    ],
    "view_as_real": [
        lambda m, a, b: torch.view_as_real(spectrum(a * m.k)),
        lambda m, a, b: torch.view_as_real(spectrum(a).transpose(1, 2)).pow(2).sum(-1),
    ],
}

assert T * F == 8  # samples of these waves
