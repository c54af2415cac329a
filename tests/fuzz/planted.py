"""Networks with a planted counterexample that gradient descent does not find: ``make planted``.

The recipe of SoundnessBench (Zhou et al., "SoundnessBench: A soundness benchmark for neural network
verifiers", 2024): a network is trained to flip at a planted point of a box around an input, and to
keep its class wherever random points lie and descent ends. A verifier that certifies a box with the
point in it is wrong, whatever attacks say. Networks of one kind are trained all at once.

Attention would learn to switch from frame to frame next to the input, where no line follows a
softmax. Its networks learn, too, that shares of frames hardly move over corners of half the box.

S: networks, P: points of a box, T: frames, N: features.
"""

import argparse
import itertools
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import softplus

from popqorn_train import LpBall, certified_radius, certify
from popqorn_train.bounds.methods import METHODS
from popqorn_train.certificates.probes import PROBES
from tests.fuzz.planted_nets import FEATURES, FRAMES, KINDS, SHARPER, Shares, Unrolled, new_net

SIZE, NEAR = 0.5, 0.2
CALM, RANGE = 0.5, 0.2  # how far, in sizes of the box, shares may move only so much
FAR = 0.3  # of the distance of a planted point: what tight bounds certify
KEPT = Path(__file__).with_name("planted.pt")  # three of them


class Recipe(NamedTuple):
    """How networks of a kind are trained."""

    epochs: int = 1200
    missed: float = 3  # weight of a planted point at which the class does not flip
    calm: float = 0  # weight of shares of attention that move next to the input


RECIPES = {kind: Recipe(2000, 10, 10) for kind in ("attention", "pooled rnn")}


class Planted(NamedTuple):
    """A network, an input ``(1, T, N)`` of class 0, and the change after which it is class 1."""

    net: nn.Module
    x: Tensor
    change: Tensor

    @property
    def distance(self) -> float:
        """How far the planted point is."""
        return float(self.change.abs().max())

    def margins(self, changes: Tensor) -> Tensor:
        """Logit of class 0 minus that of class 1 at changed inputs."""
        logits = self.net(self.x + changes)
        return logits[:, 0] - logits[:, 1]


def descent(margins, starts: Tensor, steps: int, rate: float = 0.15) -> Tensor:
    """Changes in the box after projected descent on margins from each start."""
    change = starts
    for _ in range(steps):
        change = change.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(margins(change).sum(), change)
        change = (change - rate * SIZE * gradient.sign()).clamp(-SIZE, SIZE)
    return change.detach()


def random_changes(*shape: int) -> Tensor:
    """Points of the box."""
    return SIZE * (2 * torch.rand(*shape, FRAMES, FEATURES, dtype=torch.float64) - 1)


class _Batch:
    """Networks of one kind in training, with an input and a point to plant for each."""

    def __init__(self, kind: str, count: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.nets = [new_net(kind) for _ in range(count)]
        for weight in (p for net in self.nets for p in net.parameters()):
            weight.data *= SHARPER
        self.runs = self.nets if kind == "attention" else [Unrolled(net) for net in self.nets]
        self.params, _ = stack_module_state(self.runs)
        self.x = torch.randn(count, 1, FRAMES, FEATURES, dtype=torch.float64)
        self.change = 0.7 * random_changes(count, 1)  # inside, where steps by signs seldom end
        self.change[:, :, 0, 0] = SIZE
        self.ends = random_changes(count, 0)
        self.corners = torch.Generator().manual_seed(seed)

    def margins(self, changes: Tensor) -> Tensor:
        """Logit of class 0 minus that of class 1 at changed inputs."""
        call = vmap(lambda weights, x: functional_call(self.runs[0], weights, (x,)))
        logits = call(self.params, self.x + changes)
        return logits[..., 0] - logits[..., 1]

    def ranges(self) -> Tensor:
        """The largest range of a share over random corners of a smaller box ``(S,)``."""
        shape = len(self.x), 64, FRAMES, FEATURES
        signs = 2 * torch.randint(2, shape, generator=self.corners) - 1
        net, weights = Shares(self.runs[0]), {f"net.{name}": p for name, p in self.params.items()}
        call = vmap(lambda weights, x: functional_call(net, weights, (x,)))
        shares = call(weights, self.x + CALM * SIZE * signs)
        return (shares.amax(1) - shares.amin(1)).amax(1)

    def points(self, done: float, epoch: int) -> Tensor:
        """Points of the box, random ones and those at which descent ends ``(S, P, T, N)``."""
        starts = random_changes(len(self.x), 48)
        starts[:, 0] = 0
        if epoch >= 60:  # most descents go on where the last ones ended
            late = done > 0.5 and epoch % 20 == 0
            more = descent(self.margins, starts, 40) if late else starts[:, :16]
            self.ends = descent(self.margins, torch.cat([more, self.ends[:, :64]], 1), 4)
        return torch.cat([starts, self.ends], 1)

    def loss(self, recipe: Recipe, epoch: int) -> Tensor:
        """What each network is to make small ``(S,)``."""
        done = epoch / recipe.epochs
        points = self.points(done, epoch)
        far = (points - self.change).abs().amax((2, 3)) > NEAR * SIZE
        wrong = softplus(4 * (0.5 - self.margins(points))) / 2 * far
        missed = (0.1 + self.margins(self.change)[:, 0]).relu()
        loss = 4 * wrong.topk(8, 1).values.mean(1) + wrong.mean(1) + recipe.missed * missed
        calm = recipe.calm * min(max(done - 0.2, 0) / 0.3, 1)  # late: first of all, the class flips
        return loss + calm * (self.ranges() - RANGE).relu() if calm else loss


def plant(kind: str, count: int, seed: int) -> list[Planted]:
    """Train networks; not every one hides its point."""
    batch, recipe = _Batch(kind, count, seed), RECIPES.get(kind, Recipe())
    optimizer = torch.optim.Adam(batch.params.values(), lr=1e-2)
    for epoch in range(recipe.epochs):
        loss = batch.loss(recipe, epoch)
        optimizer.zero_grad()
        loss.sum().backward()
        share = 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))
        optimizer.param_groups[0]["lr"] = 1e-2 * (0.02 + 0.98 * share)
        _clip(batch.params)
        optimizer.step()
    for place, run in enumerate(batch.runs):
        run.load_state_dict({name: value[place] for name, value in batch.params.items()})
    nets = [net.eval().requires_grad_(False) for net in batch.nets]
    return [Planted(*parts) for parts in zip(nets, batch.x, batch.change, strict=True)]


def _clip(params: dict[str, Tensor]) -> None:
    """No gradient of a network is longer than 1."""
    squares = [value.grad.flatten(1).square().sum(1) for value in params.values()]
    scale = 1 / torch.stack(squares).sum(0).sqrt().clamp(min=1)
    for value in params.values():
        value.grad *= scale.view(-1, *[1] * (value.ndim - 1))


def is_hidden(found: Planted, starts: int = 25, steps: int = 50) -> bool:
    """Whether the class flips at the planted point, and nowhere that descent ends."""
    if not (found.margins(found.change) < 0).all():
        return False
    torch.manual_seed(7)
    first = random_changes(starts)
    first[0] = 0
    ends = [descent(found.margins, first, steps, rate) for rate in (0.15, 0.03)]
    return bool((found.margins(torch.cat(ends)) > 0).all())


def hidden(kinds: Sequence[str], at_once: int) -> Iterator[tuple[str, Planted]]:
    """Networks of all kinds that hide their point, until nobody asks for more."""
    for seed in itertools.count():
        for kind in kinds:
            for found in filter(is_hidden, plant(kind, at_once, seed)):
                yield kind, found


def certified_shares(found: Planted, methods: Sequence[str] = tuple(METHODS)) -> dict[str, float]:
    """The largest certified radius of each method, in distances of the planted point.

    Raises:
        AssertionError: a method certifies a box in which the class is known to change.
    """
    y, shares = torch.zeros(1, dtype=torch.long), {}
    for method in methods:
        for probes in (0, PROBES):  # probes look at other points
            box = LpBall(found.distance)
            proof = certify(found.net, found.x, y, box, method=method, probes=probes)
            assert not proof.certified.any(), f"{method} certifies the planted point"
        radius = float(certified_radius(found.net, found.x, y, method=method, rtol=0.01))
        assert radius < found.distance, f"{method} certifies beyond the planted point"
        shares[method] = radius / found.distance
    return shares


def keep(nets: Sequence[tuple[str, Planted]], path: Path) -> None:
    """Write networks to a file."""
    torch.save([(kind, f.net.state_dict(), f.x, f.change) for kind, f in nets], path)


def kept(path: Path = KEPT) -> list[Planted]:
    """Networks from a file."""
    nets = []
    for kind, weights, x, change in torch.load(path, weights_only=True):
        net = new_net(kind)
        net.load_state_dict(weights)
        nets.append(Planted(net.eval().requires_grad_(False), x, change))
    return nets


def main() -> None:
    """Make networks of all kinds, try to certify them, and print a table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--keep", type=Path, help="a file for the networks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    table, nets = [], []
    for kind, found in itertools.islice(hidden(options.kinds, options.at_once), options.count):
        start = time.process_time()
        table.append(certified_shares(found))
        nets.append((kind, found))
        proofs, at = time.process_time() - start, float(found.margins(found.change))
        best = max(table[-1].values())
        line = f"{kind:10} margin at the planted point {at:.3f}   best radius {best:.2f} of its"
        print(f"{line} distance   {proofs:.1f} s, {time.process_time():.0f} s in all", flush=True)
        if options.keep:
            keep(nets, options.keep)
    summarize(table)


def summarize(table: Sequence[dict[str, float]]) -> None:
    """Print how many networks were certified, and how far methods came."""
    best = [max(shares.values()) for shares in table]
    middle, far = float(torch.tensor(best).median()), sum(share > FAR for share in best)
    print(f"certified: 0 of {len(best)}; best radius: median {middle:.2f}, {far} above {FAR}")
    for method in table[0]:
        radii = torch.tensor([shares[method] for shares in table])
        far = int((radii > FAR).sum())
        print(f"    {method:16} {radii.min():.2f} to {radii.max():.2f}, {far} above {FAR}")


if __name__ == "__main__":
    main()
