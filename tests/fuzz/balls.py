"""What may move in a draw, at every size, written again without the package.

B: batch, T: frames, N: features.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from popqorn_train import Box, LpBall
from tests.fuzz.draws import Draw


@dataclass(frozen=True)
class Balls:
    """The balls or boxes around a batch, all shapes multiplied by one size per sample.

    Attributes:
        center: ``(B, T, N)`` in float64.
        reach: ``(B, T)`` radius at size 1; of boxes ``(B, T, N)``, up and down by the same.
        moving: ``(B, T, N)`` 1 where something moves.
        low, high: ``(B, T, N)`` ends of the domain.
        frames, features: masks as they are passed, or None.
    """

    draw: Draw
    center: Tensor
    reach: Tensor
    moving: Tensor
    low: Tensor
    high: Tensor
    frames: Tensor | None
    features: Tensor | None

    def at(self, size: Tensor) -> LpBall | Box:
        """What the package is asked about, ``size`` being ``(B,)``."""
        if self.draw.ball == "box":
            change = size[:, None, None] * self.reach * self.moving
            return Box(self.center - change, self.center + change)
        kind = self.draw.epsilons
        epsilon = size[:, None] * self.reach if kind == "frame" else size * self.reach[:, 0]
        known = {"none": {}, "unit": {"low": 0.0, "high": 1.0}}
        edges = known.get(self.draw.domain, {"low": self.low, "high": self.high})
        options = {"scope": self.draw.scope, "frames": self.frames, "features": self.features}
        return LpBall(epsilon, self.draw.p, **options, **edges)

    def repeated(self, times: int) -> "Balls":
        """Every sample as many times, copy after copy."""
        every = {name: getattr(self, name) for name in ("center", "reach", "moving", "low", "high")}
        return replace(self, **{n: v.repeat(times, *[1] * (v.ndim - 1)) for n, v in every.items()})

    def pick(self, chosen: Tensor) -> "Balls":
        """Some samples."""
        every = {name: getattr(self, name) for name in ("center", "reach", "moving", "low", "high")}
        masks = {n: getattr(self, n) for n in ("frames", "features")}
        every |= {n: m for n, m in masks.items() if m is not None and m.ndim == 2}
        return replace(self, **{name: value[chosen] for name, value in every.items()})

    def inside(self, change: Tensor, size: Tensor) -> Tensor:
        """The change, shortened into the ball of this size and the domain."""
        change = change * self.moving
        if self.draw.ball == "box":
            most = size[:, None, None] * self.reach
            return torch.minimum(torch.maximum(change, -most), most)
        flat = change if self.draw.scope == "frame" else change.flatten(1)[:, None]
        norm = torch.linalg.vector_norm(flat, self.draw.p, dim=-1, keepdim=True)
        most = (size[:, None] * self.reach)[..., None]
        most = most if self.draw.scope == "frame" else most[:, :1]
        share = (most / norm.clamp(min=1e-300)).clamp(max=1) * (1 - 1e-14)
        change = (flat * share).view_as(change)
        return torch.minimum(torch.maximum(change, self.low - self.center), self.high - self.center)

    def points(self, size: Tensor, generator: torch.Generator, *, corners: bool) -> Tensor:
        """A change per sample: to a corner, or to anywhere."""
        shape = self.center.shape
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if self.draw.ball == "box" or self.draw.p == math.inf:
            noise = noise.sign() if corners else 2 * torch.rand_like(noise) - 1
        elif corners and self.draw.p == 1:
            noise = noise * torch.nn.functional.one_hot(
                torch.randint(shape[-1], shape[:2], generator=generator), shape[-1]
            )
        far = 1e6 if corners else 3 * float(torch.rand((), generator=generator))
        return self.inside(noise * far * size[:, None, None] * self._widest(), size)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The step of norm 1 by which a linear function falls fastest, at reach 1."""
        g = gradient * self.moving
        if self.draw.ball == "box":
            return -g.sign() * self.reach
        p, flat = self.draw.p, g if self.draw.scope == "frame" else g.flatten(1)[:, None]
        top = flat.abs().amax(-1, keepdim=True).clamp(min=1e-300)
        if p == 1:
            step = flat.sign() * torch.nn.functional.one_hot(flat.abs().argmax(-1), flat.shape[-1])
        else:
            step = flat.sign() * (flat.abs() / top) ** (0 if p == math.inf else 1 / (p - 1))
        step = step / torch.linalg.vector_norm(step, p, dim=-1, keepdim=True).clamp(min=1e-300)
        reach = self.reach if self.draw.scope == "frame" else self.reach[:, :1]
        return -(step * reach[..., None]).view_as(g)

    def _widest(self) -> Tensor:
        return self.reach if self.reach.ndim == 3 else self.reach[..., None]


def balls_around(draw: Draw, center: Tensor, generator: torch.Generator) -> Balls:
    """What may move around these inputs ``(B, T, N)``."""
    batch, time, width = center.shape
    frames = features = None
    moving = torch.ones_like(center)
    if draw.mask in ("frames", "both"):
        frames = torch.rand(batch, time, generator=generator) < 0.6
        frames[:, 0] = True
        moving = moving * frames[..., None]
    if draw.mask in ("features", "both") and width > 1:
        features = torch.rand(width, generator=generator) < 0.6
        features[0] = True
        moving = moving * features
    shapes = {"one": (), "sample": (batch, 1), "frame": (batch, time)}
    reach = torch.rand(shapes[draw.epsilons], generator=generator, dtype=torch.float64) + 0.5
    reach = reach.expand(batch, time) if draw.epsilons != "one" else center.new_ones(batch, time)
    if draw.ball == "box":
        reach = torch.rand(center.shape, generator=generator, dtype=torch.float64) + 0.2
    low, high = torch.full_like(center, -math.inf), torch.full_like(center, math.inf)
    if draw.domain == "unit" and draw.ball != "box":
        low, high = torch.zeros_like(center), torch.ones_like(center)
    elif draw.domain == "own" and draw.ball != "box":
        low = center - torch.rand(center.shape, generator=generator, dtype=torch.float64)
        high = center + torch.rand(center.shape, generator=generator, dtype=torch.float64)
    return Balls(draw, center, reach, moving, low, high, frames, features)
