"""A drawn model on a batch of inputs, and everything that a check of it needs.

B: batch, T: frames, N: features, C: classes.
"""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from popqorn_train import BoundModel, bound, certify
from popqorn_train.certificates.certificate import Certificate
from tests.fuzz.attacks import Oracle
from tests.fuzz.balls import Balls, balls_around
from tests.fuzz.draws import Draw
from tests.fuzz.models import VOCABULARY, DrawnModel, model_of

RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the logits, what rounding may hide


class FalseClaimError(AssertionError):
    """Something that was proved is not so."""


@dataclass
class Setting:
    """A drawn model on a batch, and everything that a check needs."""

    draw: Draw
    model: DrawnModel
    asked: BoundModel
    inputs: tuple[Tensor, ...]
    target: Tensor
    balls: Balls
    oracle: Oracle
    slack: Tensor  # (B,) of margins, in float64
    generator: torch.Generator
    counts: Counter[str]

    def chosen(self, at: Tensor, target: Tensor | None = None) -> "Setting":
        """Some samples of the batch, in any order, any number of times."""
        axis = 1 if self.draw.layout == "time first" else 0
        inputs = tuple(x.index_select(min(axis, x.ndim - 1), at) for x in self.inputs)
        return Setting(
            self.draw, self.model, self.asked, inputs, self.target[at], self.balls.pick(at),
            self.oracle.pick(at), self.slack[at], self.generator, self.counts,
        )  # fmt: skip

    def certify(self, size: Tensor, method: str, **options: object) -> Certificate:
        """The question itself; probes would hide what is false."""
        options = {"probes": 0} | options
        ball = self.balls.at(size)
        return certify(self.asked, self.inputs, self.target, ball, method=method, **options)

    def hold(self, is_true: Tensor, what: str) -> None:
        """Count claims, and raise at the first false one."""
        self.counts["claims"] += is_true.numel()
        if not bool(is_true.all()):
            at = (~is_true).nonzero()[0].tolist()
            raise FalseClaimError(f"{what}, at {at}")


def _exactly(model: DrawnModel) -> Callable[[Tensor, Tensor | None], Tensor]:
    """The same model in float64, from what is embedded to logits ``(B, C)``."""
    exact = copy.deepcopy(model).double()
    exact.embedding = nn.Identity()

    def run(x: Tensor, lengths: Tensor | None) -> Tensor:
        z = exact.logits(exact.as_passed(x), lengths)
        return torch.cat([torch.zeros_like(z), z], 1) if model.draw.single else z

    return run


@torch.no_grad()
def _amid(model: DrawnModel, x: Tensor, lengths: Tensor | None) -> None:
    """Shift the logits so that the inputs lie on both sides of the border between classes."""
    z = _exactly(model)(x.double(), lengths)
    middle = z.median(0).values
    if bool((z - middle).abs().amax() <= 1e-6 * (1 + z.abs().amax())):
        return  # the same everywhere: no class would win
    model.head.bias -= (middle[1:] if model.draw.single else middle).to(model.head.bias)


@torch.no_grad()
def _near(
    run: Callable[[Tensor, Tensor | None], Tensor],
    x: Tensor,
    lengths: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """Move inputs on the way to an input of another class, to less of their distance from it."""
    start, batch = x.double(), len(x)
    end, own = start.roll(1, 0), run(start, lengths).argmax(1)
    low, high = torch.zeros(batch, 1, 1).double(), torch.ones(batch, 1, 1).double()
    flips = run(end, lengths).argmax(1) != own
    for _ in range(20):
        middle = (low + high) / 2
        other = (run(start + middle * (end - start), lengths).argmax(1) != own)[:, None, None]
        low, high = torch.where(other, low, middle), torch.where(other, middle, high)
    left = torch.tensor([1, 0.3, 0.1, 0.03, 0.01, 0.003]).double()
    left = left[torch.randint(len(left), (batch, 1, 1), generator=generator)]
    moved = start + (1 - left) * low * (end - start)
    return torch.where(flips[:, None, None], moved, start).to(x)


def set_up(draw: Draw, counts: Counter[str]) -> Setting:
    """Draw inputs and labels; samples on the border between classes are left out."""
    model, generator = model_of(draw), torch.Generator().manual_seed(draw.seed + 1)
    asked = bound(model, frame_axis=2) if draw.layout in ("channels", "image") else bound(model)
    size = (draw.batch, draw.frames, draw.features)
    x = torch.rand(size, generator=generator) if draw.domain == "unit" else None
    x = torch.randn(size, generator=generator) if x is None else x
    x = x.to(getattr(torch, draw.dtype))
    tokens = torch.randint(VOCABULARY, size[:2], generator=generator) if draw.tokens else None
    x = x if tokens is None else model.embedding(tokens).detach()
    lengths = None
    if draw.packing != "none":
        lengths = torch.randint(1, draw.frames + 1, size[:1], generator=generator)
    if draw.border != "far":
        _amid(model, x, lengths)
    run = _exactly(model)
    if draw.border == "near" and tokens is None:
        x = _near(run, x, lengths, generator)
    inputs = (model.as_passed(x) if tokens is None else tokens,)
    inputs = inputs if lengths is None else (*inputs, lengths)
    balls = balls_around(draw, x.double(), generator)
    with torch.no_grad():
        clean = run(x.double(), lengths)
    slack = RELATIVE[torch.float64] * (1 + clean.abs().amax(1))
    made = Setting(
        draw, model, asked, inputs, clean.argmax(1), balls,
        Oracle(run, lengths, clean.argmax(1)), slack, generator, counts,
    )  # fmt: skip
    return made
