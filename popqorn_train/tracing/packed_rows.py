"""What forward may do to the rows of a packed sequence while it is recorded.

The code has rows ``(M, F)`` of all samples, the recording has ``(B, T, F)`` in their place. An axis
counted from the front, the number of rows and ``batch_sizes`` mean something else there. So only
what treats every row alike, with its axis counted from the last one, is recorded; all else is
refused, whatever it gives at the clean input.
"""

from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from popqorn_train.relaxations.curves import CURVES
from popqorn_train.tracing.packed import Packed, repack
from popqorn_train.tracing.steps import IDENTITIES

_ORDER = ("batch_sizes", "sorted_indices", "unsorted_indices")
_ELEMENTWISE = (
    IDENTITIES
    | CURVES.keys()
    | frozenset(
        (
            "add", "clamp_max", "clamp_min", "div", "divide", "lerp", "masked_fill", "maximum",
            "minimum", "mul", "multiply", "neg", "pow", "relu", "rsub", "sigmoid", "sub",
            "subtract", "tanh", "true_divide", "truediv", "where",
        )
    )
)  # fmt: skip
_MAPS = ("embedding", "linear", "matmul", "mm")  # with a matrix, on every row
_ALONG = ("cat", "chunk", "cumsum", "glu", "split")  # an axis that stays
_REDUCED = ("amax", "amin", "mean", "sum")  # an axis that stays with keepdim=True
_NORMS = ("layer_norm", "rms_norm")  # of the last axes
_LAYERS = (
    nn.Linear, nn.Identity, nn.Dropout, nn.AlphaDropout, nn.Embedding, nn.LayerNorm, nn.RMSNorm,
)  # fmt: skip
_ACROSS = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.MultiheadAttention)
_WAY_OUT = "count axes from the last one (dim=-1, data[..., :2]), or do it where nothing is packed"


class Part(NamedTuple):
    """What a recorded result is of a packed sequence.

    Attributes:
        kind: the field that it is, or is made of: ``"data"``, or what says which row is whose.
        lengths: identity of the lengths, which tell sequences apart.
        ordered: whether the samples are sorted, so that no indices sort them.
    """

    kind: str
    lengths: int
    ordered: bool


def part_of(node: fx.Node, model: nn.Module, name: str) -> Part | None:
    """What a recorded result is of a packed sequence; None for anything else.

    Args:
        node: with the values of what it reads known.
        model: that is recorded.
        name: of what is called.

    Raises:
        ValueError: it reads rows otherwise than row by row.
    """
    first = node.args[0] if node.args else None
    whole = first.meta["value"] if isinstance(first, fx.Node) else None
    if isinstance(whole, Packed) and node.op != "call_module":
        return _field(node, whole, name)
    if node.target is repack:
        _check_repacked(node, None)
        return None
    found = map(_part, node.all_input_nodes)
    parts = list(dict.fromkeys(part for part in found if part is not None))
    if not parts:
        return None
    part = parts[0]
    if len(parts) > 1 or (part.kind != "data" and name not in IDENTITIES):
        raise ValueError(
            "it brings rows or sizes of packed sequences together; do it where nothing is packed"
        )
    if part.kind == "data" and not _row_by_row(node, model, name):
        raise ValueError(f"{name} does not act on packed rows one by one; {_WAY_OUT}")
    return part


def _field(node: fx.Node, whole: Packed, name: str) -> Part | None:
    """A packed sequence is read: its fields by name, or whole."""
    if name == "getattr" and node.args[1] in ("data", *_ORDER):
        return Part(str(node.args[1]), id(whole.lengths), whole.ordered)
    if name in ("getattr", "getitem"):
        raise ValueError("it reads a packed sequence by place; read data and batch_sizes by name")
    if name == "_replace":
        _check_repacked(node, whole)
    return None


def _check_repacked(node: fx.Node, whole: Packed | None) -> None:
    """Rows and order are those of one packed sequence, each in its place."""
    given = dict(zip(("data", *_ORDER), node.args, strict=False)) if whole is None else {}
    given = {name: value for name, value in {**given, **node.kwargs}.items() if value is not None}
    parts = {name: _part(value) for name, value in given.items()}
    known = {(part.lengths, part.ordered) for part in parts.values() if part is not None}
    known |= set() if whole is None else {(id(whole.lengths), whole.ordered)}
    for name, part in parts.items():
        if part is None or part.kind != name or len(known) > 1:
            raise ValueError(f"`{name}` of a packed sequence is not made of that of another one")
    if whole is None:
        dropped = "sorted_indices" not in given
    else:
        dropped = any(name in node.kwargs and name not in given for name in _ORDER)
    if dropped and not all(ordered for _, ordered in known):
        raise ValueError(
            "it leaves out the order of a packed sequence; pass on p.sorted_indices and "
            "p.unsorted_indices"
        )


def _part(value: Any) -> Part | None:
    return value.meta.get("packed") if isinstance(value, fx.Node) else None


def _row_by_row(node: fx.Node, model: nn.Module, name: str) -> bool:
    if node.op == "call_module":
        return _is_row_wise(model.get_submodule(str(node.target)))
    rest = node.args[1:]
    if name == "getitem":
        whole = node.all_input_nodes[0].meta["value"]
        last = rest[0] if isinstance(rest[0], tuple) else ()
        return isinstance(whole, tuple | list) or (len(last) == 2 and last[0] is Ellipsis)
    if name in _NORMS:
        shape: Any = rest[0] if rest else node.kwargs.get("normalized_shape", ())
        return _is_rows(node.args[0]) and len(shape) == 1 and not any(map(_is_rows, rest[1:]))
    if name in _MAPS:
        return _is_rows(node.args[0]) and not any(map(_is_rows, rest))
    if name in _ALONG or name in _REDUCED:
        kept = name in _ALONG or node.kwargs.get("keepdim", rest[1:2] == (True,)) is True
        return kept and _dim(node, name) == -1 and _fit(node)
    return name in _ELEMENTWISE and _fit(node)


def _is_row_wise(layer: nn.Module) -> bool:
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return len(layer.normalized_shape) == 1
    if isinstance(layer, nn.GLU):
        return layer.dim == -1
    if isinstance(layer, nn.PReLU):
        return layer.num_parameters == 1
    activation = type(layer).forward.__module__ == "torch.nn.modules.activation"
    return isinstance(layer, _LAYERS) or (activation and not isinstance(layer, _ACROSS))


def _dim(node: fx.Node, name: str) -> Any:
    place = 2 if name in ("chunk", "split") else 1
    given = node.args[place] if place < len(node.args) else node.kwargs.get("dim")
    given = -1 if given is None and name == "glu" else given
    return given[0] if isinstance(given, tuple | list) and len(given) == 1 else given


def _is_rows(value: Any) -> bool:
    part = _part(value)
    return part is not None and part.kind == "data"


def _fit(node: fx.Node) -> bool:
    """Whether everything else that is read is the same for every row."""
    fits = True

    def look(other: fx.Node) -> fx.Node:
        nonlocal fits
        value = other.meta["value"]
        if not _is_rows(other) and isinstance(value, Tensor):
            fits = fits and value.ndim <= 2 and value.shape[:-1].numel() == 1
        return other

    map_arg((node.args, node.kwargs), look)
    return fits


def has_size_of(part: Part | None, dim: Any) -> bool:
    """Whether the size of an axis is that which the code has: the last one of rows."""
    return part is None or (part.kind == "data" and dim == -1)
