"""How to write what has no bound."""

_COMPLEX = (
    "Write complex numbers as pairs of real ones, and the recurrence as a loop over frames: "
    "re, im = a * re - b * im + u, b * re + a * im + v."
)
_TRANSFORM = (
    "A convolution by Fourier transforms is a product with a matrix of constants: "
    "torch.einsum('hts,bsh->bth', matrix, u), or a loop over frames h = a * h + u[:, t]."
)
_SCAN = "Write the scan as the loop over frames that it stands for, h = a[:, t] * h + u[:, t]."
_SPECTRUM = (
    "Of torch.stft(x, ..., return_complex=True) take the absolute values, .abs(), their powers, "
    ".abs() ** 2, or the parts, .real and .imag; move, pick or scale its entries before."
)
_WAYS_OUT = {
    "complex": _COMPLEX,
    "view_as_complex": _COMPLEX,
    "polar": _COMPLEX,
    "fft": _TRANSFORM,
    "spectrum": _SPECTRUM,
    "cumprod": _SCAN,
    "logcumsumexp": _SCAN,
    "logaddexp": "Stack both and take torch.logsumexp along the new axis.",
}


def way_out_of(name: str) -> str:
    """What to do about an operation without a bound; empty where nothing special is known."""
    return _WAYS_OUT.get("fft" if name.startswith("fft_") else name, "")
