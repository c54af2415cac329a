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
_POWERS = (
    "Write the power spectrum of windows as products with a matrix of cosines and sines, (x.unfold("
    "-1, n_fft, hop_length) @ matrix).square() @ filters, which adds both parts of a frequency up; "
    "popqorn_train.recipes.log_mel.LogMel is a module of log-mel features that does so."
)
_WAYS_OUT = {
    "complex": _COMPLEX,
    "view_as_complex": _COMPLEX,
    "polar": _COMPLEX,
    "fft": _TRANSFORM,
    "stft": _POWERS,
    "cumprod": _SCAN,
    "logcumsumexp": _SCAN,
    "logaddexp": "Stack both and take torch.logsumexp along the new axis.",
}


def way_out_of(name: str) -> str:
    """What to do about an operation without a bound; empty where nothing special is known."""
    return _WAYS_OUT.get("fft" if name.startswith("fft_") else name, "")
