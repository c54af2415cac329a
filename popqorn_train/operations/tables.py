"""Everything that can be bounded: importing this fills the tables of lift.py, and prints them."""

from popqorn_train.operations import (  # noqa: F401
    arithmetic,
    attention,
    contractions,
    convolution,
    elementwise,
    functional_norms,
    layers,
    max_pools,
    multihead,
    norms,
    packing,
    padding,
    pairs,
    reductions,
    shapes,
    spectra,
    statistics,
    writes,
)
from popqorn_train.operations.registry import MODULES, OPERATIONS, SPECTRA
from popqorn_train.tracing.packed import REPLACED

_TITLES = {
    "layers": "recurrent layers and cells",
    "packing": "different lengths",
    "arithmetic": "arithmetic and linear layers",
    "contractions": "products of matrices, sums along an axis",
    "attention": "softmax and attention",
    "multihead": "softmax and attention",
    "pairs": "gates, blends, the greater of two",
    "elementwise": "activations",
    "convolution": "convolution and pooling",
    "max_pools": "convolution and pooling",
    "norms": "normalisation",
    "functional_norms": "normalisation",
    "reductions": "sums, means, maxima, masks",
    "statistics": "norms, spreads, log-sum-exp",
    "shapes": "shapes, picking, joining",
    "padding": "padding",
    "spectra": "spectra: `torch.stft`, and of its complex numbers",
    "writes": "writes of slices, `x[:, t] = v`",
}


def supported() -> dict[str, tuple[list[str], list[str]]]:
    """Modules and operations by kind, sorted, as users write them."""
    spoken = {ours.__name__: torchs.__name__ for torchs, ours in REPLACED.items()}
    spoken |= {"repack": "PackedSequence", "written": "setitem"}
    spoken |= {name: name.replace("_", ".", 1) for name in OPERATIONS if name.startswith("linalg")}
    spoken["log_sigmoid"] = "logsigmoid"  # as torch calls it in its own name
    found: dict[str, tuple[list[str], list[str]]] = {title: ([], []) for title in _TITLES.values()}
    for kind, handler in MODULES.items():
        found[_title(handler)][0].append(f"nn.{kind.__name__}")
    for name, handler in OPERATIONS.items():
        found[_title(handler)][1].append(spoken.get(name, name))
    for name in SPECTRA.keys() - OPERATIONS.keys():
        found[_TITLES["spectra"]][1].append(name)
    return {title: (sorted(one), sorted(two)) for title, (one, two) in found.items()}


def _title(handler: object) -> str:
    function = getattr(handler, "func", handler)  # what a partial calls
    return _TITLES[str(function.__module__).rsplit(".", 1)[-1]]


def supported_table() -> str:
    """The table of the README, in Markdown."""
    rows = ["| | modules | operations, as functions, methods or operators |", "|---|---|---|"]
    for title, columns in supported().items():
        cells = [", ".join(f"`{name}`" for name in names) or "-" for names in columns]
        rows.append(f"| {title} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)
