"""Networks with a planted counterexample that gradient descent does not find: ``make planted``.

The recipe of SoundnessBench (Zhou et al., "SoundnessBench: A soundness benchmark for neural network
verifiers", 2024): a network is trained to flip at a planted point of a box around an input, and to
keep its class wherever random points lie and descent ends. A verifier that certifies a box with the
point in it is wrong, whatever attacks say. Networks of one kind are trained all at once.

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

FRAMES, FEATURES, HIDDEN, SIZE, NEAR = 3, 4, 16, 0.5, 0.2
SHARPER = 2.5  # weights than new ones, so that a function can turn on a short way
FLATTER = 0.2  # the same for the scores of a recurrent network
KEPT = Path(__file__).with_name("planted.pt")  # three of them
KINDS = ("rnn", "lstm", "gru", "attention", "pooled rnn")
_CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class Recurrent(nn.Module):
    """One recurrent layer and a linear read-out of its last state."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn, self.head = _CELLS[kind](FEATURES, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Attention(nn.Module):
    """Frames pooled by additive attention, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.frame, self.score = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, 1)
        self.mix, self.head = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 2)

    def forward(self, x):
        h = torch.tanh(self.frame(x))
        return self.head(torch.tanh(self.mix(pooled(self.score, h))))


class Pooled(Recurrent):
    """The same of all states, pooled by attention with scores that start less steep."""

    def __init__(self) -> None:
        super().__init__("rnn")
        self.score = nn.Linear(HIDDEN, 1)
        self.score.weight.data *= FLATTER / SHARPER

    def forward(self, x):
        return self.head(pooled(self.score, self.rnn(x)[0]))


def pooled(score, states):
    """A mean of all states."""
    return (torch.softmax(score(states), 1) * states).sum(1)


class Unrolled(nn.Module):
    """A recurrent network by its formulas, which can be run for many weights at once."""

    def __init__(self, net: Recurrent) -> None:
        super().__init__()
        self.rnn, self.head, self.score = net.rnn, net.head, getattr(net, "score", None)

    def forward(self, x):
        rnn, states = self.rnn, []
        h = c = x.new_zeros(len(x), HIDDEN)
        for frame in x.unbind(1):
            a = frame @ rnn.weight_ih_l0.mT + rnn.bias_ih_l0
            b = h @ rnn.weight_hh_l0.mT + rnn.bias_hh_l0
            if isinstance(rnn, nn.RNN):
                h = torch.tanh(a + b)
            elif isinstance(rnn, nn.LSTM):
                i, f, g, o = (a + b).chunk(4, -1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            else:
                (r, z, n), (rh, zh, nh) = a.chunk(3, -1), b.chunk(3, -1)
                n = torch.tanh(n + torch.sigmoid(r + rh) * nh)
                z = torch.sigmoid(z + zh)
                h = (1 - z) * n + z * h
            states.append(h)
        return self.head(h if self.score is None else pooled(self.score, torch.stack(states, 1)))


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


def new_net(kind: str) -> nn.Module:
    """A network of this kind, not trained."""
    kinds = {"attention": Attention, "pooled rnn": Pooled}
    return (kinds[kind]() if kind in kinds else Recurrent(kind)).double()


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


def plant(kind: str, count: int, seed: int, epochs: int = 1200) -> list[Planted]:
    """Train networks; not every one hides its point."""
    torch.manual_seed(seed)
    nets = [new_net(kind) for _ in range(count)]
    for weight in (p for net in nets for p in net.parameters()):
        weight.data *= SHARPER
    runs = nets if kind == "attention" else [Unrolled(net) for net in nets]
    params, _ = stack_module_state(runs)
    x = torch.randn(count, 1, FRAMES, FEATURES, dtype=torch.float64)
    change = 0.7 * random_changes(count, 1)  # inside, where steps by signs seldom end
    change[:, :, 0, 0] = SIZE
    call = vmap(lambda weights, x: functional_call(runs[0], weights, (x,)))

    def margins(changes):
        logits = call(params, x + changes)
        return logits[..., 0] - logits[..., 1]

    optimizer = torch.optim.Adam(params.values(), lr=1e-2)
    ends = random_changes(count, 0)
    for epoch in range(epochs):
        starts = random_changes(count, 48)
        starts[:, 0] = 0
        if epoch >= 60:  # most descents go on where the last ones ended
            late = epoch > epochs // 2 and epoch % 20 == 0
            more = descent(margins, starts, 40) if late else starts[:, :16]
            ends = descent(margins, torch.cat([more, ends[:, :64]], 1), 4)
        points = torch.cat([starts, ends], 1)
        far = (points - change).abs().amax((2, 3)) > NEAR * SIZE
        wrong = softplus(4 * (0.5 - margins(points))) / 2 * far
        missed = (0.1 + margins(change)[:, 0]).relu()
        loss = 4 * wrong.topk(8, 1).values.mean(1) + wrong.mean(1) + 3 * missed
        optimizer.zero_grad()
        loss.sum().backward()
        share = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        optimizer.param_groups[0]["lr"] = 1e-2 * (0.02 + 0.98 * share)
        _clip(params)
        optimizer.step()
    for place, run in enumerate(runs):
        run.load_state_dict({name: value[place] for name, value in params.items()})
    nets = [net.eval().requires_grad_(False) for net in nets]
    return [Planted(*parts) for parts in zip(nets, x, change, strict=True)]


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


def best_share(found: Planted, methods: Sequence[str] = tuple(METHODS)) -> float:
    """The largest certified radius of all methods, in distances of the planted point.

    Raises:
        AssertionError: a method certifies a box in which the class is known to change.
    """
    y, shares = torch.zeros(1, dtype=torch.long), []
    for method in methods:
        for probes in (0, PROBES):  # probes look at other points
            box = LpBall(found.distance)
            proof = certify(found.net, found.x, y, box, method=method, probes=probes)
            assert not proof.certified.any(), f"{method} certifies the planted point"
        radius = float(certified_radius(found.net, found.x, y, method=method, rtol=0.01))
        assert radius < found.distance, f"{method} certifies beyond the planted point"
        shares.append(radius / found.distance)
    return max(shares)


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
    shares, nets = [], []
    for kind, found in itertools.islice(hidden(options.kinds, options.at_once), options.count):
        start = time.process_time()
        shares.append(best_share(found))
        nets.append((kind, found))
        proofs, at = time.process_time() - start, float(found.margins(found.change))
        line = (
            f"{kind:9} margin at the planted point {at:.3f}   best radius {shares[-1]:.2f} of its"
        )
        print(f"{line} distance   {proofs:.1f} s, {time.process_time():.0f} s in all", flush=True)
        if options.keep:
            keep(nets, options.keep)
    middle = float(torch.tensor(shares).median())
    far = sum(share > 0.3 for share in shares)
    print(f"certified: 0 of {len(shares)}; best radius: median {middle:.2f}, {far} above 0.3")


if __name__ == "__main__":
    main()
