"""What is drawn: a model, what may move around its inputs, and the precision; as plain values.

A draw is written down as it is, ``Draw(seed=3, cell="gru")``, and makes the same everything again.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

# The first choice of every field is the simplest one, to which failures are shrunk.
CHOICES: dict[str, tuple[Any, ...]] = {
    "cell": (
        "tanh", "relu", "gru", "lstm", "projected lstm", "tanh loop", "gru loop", "lstm loop",
        "gru by hand", "lstm by hand",
    ),
    "layers": (1, 1, 2),
    "both": (False, False, True),
    "front": (
        "none", "none", "linear", "tanh", "gelu", "norm", "batch norm", "convolution", "embedding",
    ),
    "layout": ("batch first", "batch first", "time first", "channels", "image"),
    "packing": ("none", "none", "packed", "sorted", "masked"),
    "pooling": ("last", "mean", "max", "gated", "attention"),
    "head": ("linear", "linear", "relu", "silu", "norm"),
    "end": ("logits", "logits", "softmax", "log softmax", "one logit", "sigmoid", "clipped"),
    "classes": (2, 3, 4),
    "features": (1, 2, 3),
    "frames": (1, 2, 3, 5),
    "hidden": (1, 2, 4),
    "batch": (1, 4, 8, 12),
    "weights": (1.0, 0.01, 0.3, 3.0, 30.0),
    "biases": (0.0, 0.0, 1.0, 10.0, 500.0),
    "gates": ("free", "free", "free", "shut", "open", "dead"),
    "dtype": ("float64", "float32"),
    "ball": ("lp", "lp", "lp", "lp", "box"),
    "p": (float("inf"), float("inf"), 1.0, 2.0, 1.5, 7.0),
    "scope": ("frame", "frame", "sequence"),
    "epsilons": ("one", "one", "sample", "frame"),
    "mask": ("none", "none", "frames", "features", "both"),
    "domain": ("none", "none", "unit", "own"),
    "over": ("none", "none", "none", "encoder", "log softmax", "sentences"),
    "border": ("far", "amid", "near", "near", "near"),
}  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """One draw; see ``CHOICES`` for the values of its fields."""

    seed: int = 0
    cell: str = "tanh"
    layers: int = 1
    both: bool = False
    front: str = "none"
    layout: str = "batch first"
    packing: str = "none"
    pooling: str = "last"
    head: str = "linear"
    end: str = "logits"
    classes: int = 2
    features: int = 1
    frames: int = 1
    hidden: int = 1
    batch: int = 1
    weights: float = 1.0
    biases: float = 0.0
    gates: str = "free"
    dtype: str = "float64"
    ball: str = "lp"
    p: float = float("inf")
    scope: str = "frame"
    epsilons: str = "one"
    mask: str = "none"
    domain: str = "none"
    over: str = "none"  # what reads the states, or how the layer reads frames
    border: str = "far"  # between classes: wherever, amid the inputs, or with inputs moved near it

    @property
    def tokens(self) -> bool:
        """Whether words are replaced, instead of numbers moved."""
        return self.front == "embedding"

    @property
    def wrapped(self) -> bool:
        """Whether the cell is stepped by a loop in forward."""
        return self.cell.endswith(("loop", "by hand"))

    @property
    def cost(self) -> int:
        """About how many cells are unrolled, those with gates counting three times."""
        gated = 3 if "gru" in self.cell or "lstm" in self.cell else 1
        return self.frames * self.layers * (1 + self.both) * gated * (1 + (self.over == "encoder"))

    @property
    def single(self) -> bool:
        """Whether one number per sample comes out."""
        return self.end in ("one logit", "sigmoid", "clipped")

    def consistent(self) -> "Draw":
        """The same without what does not go together."""
        draw = self
        if draw.wrapped:
            draw = replace(draw, both=False, layers=1)
            draw = replace(draw, packing="masked" if draw.packing != "none" else "none")
        if draw.packing != "none" or draw.tokens:
            draw = replace(draw, layout="batch first")
        if draw.tokens and draw.domain == "unit":
            draw = replace(draw, domain="own")  # embeddings lie anywhere
        if draw.packing != "none" and draw.front == "convolution":
            draw = replace(draw, front="linear")  # it reads padding
        if draw.packing != "none" and draw.pooling == "attention":
            draw = replace(draw, pooling="gated")
        if draw.over == "sentences" and (
            draw.wrapped or draw.packing != "none" or draw.layout == "time first" or draw.tokens
        ):
            draw = replace(draw, over="none")  # each frame is a sentence of its own
        if draw.scope == "sequence" and draw.epsilons == "frame":
            draw = replace(draw, epsilons="sample")
        if draw.mask == "features" and draw.features == 1:
            draw = replace(draw, mask="none")
        return replace(draw, classes=2) if draw.single else draw

    def simpler(self) -> Iterator["Draw"]:
        """Draws with one field less complicated."""
        for field in fields(self):
            order = CHOICES.get(field.name, ())
            value = getattr(self, field.name)
            unique = list(dict.fromkeys(order))
            for other in unique[: unique.index(value)] if value in unique else ():
                simple = replace(self, **{field.name: other}).consistent()
                if simple != self:
                    yield simple

    def __repr__(self) -> str:
        plain = Draw()
        given = [
            f"{field.name}={getattr(self, field.name)!r}".replace("inf", 'float("inf")')
            for field in fields(self)
            if getattr(self, field.name) != getattr(plain, field.name)
        ]
        return f"Draw({', '.join(given)})"


def drawn(seed: int) -> Draw:
    """The draw of a seed."""
    source = random.Random(seed)
    values = {name: source.choice(options) for name, options in CHOICES.items()}
    return Draw(seed=seed, **values).consistent()
