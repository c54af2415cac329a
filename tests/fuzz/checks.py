"""What is checked of a draw; every check counts what it looked at, and a false claim raises.

B: batch, T: frames, N: features, C: classes.
"""

import copy
import itertools
import math
import threading
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from popqorn_train import (
    BoundModel,
    LpBall,
    Substitutions,
    UnsupportedModelError,
    bound,
    certify,
    logit_bounds,
    search_radius,
)
from popqorn_train.certificates.certificate import Certificate
from popqorn_train.errors import ContradictionError
from tests.fuzz.attacks import LARGEST, Oracle, descend, least_of_grid, smallest_flip
from tests.fuzz.balls import Balls, balls_around
from tests.fuzz.draws import Draw
from tests.fuzz.models import VOCABULARY, DrawnModel, model_of

METHODS = ("ibp", "crown-ibp", "popqorn-fast", "popqorn", "popqorn-tight", "popqorn-tightest")
INSIDE = 1 - 1e-6
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


def set_up(draw: Draw, counts: Counter[str]) -> Setting:
    """Draw inputs and labels; samples on the border between classes are left out."""
    model, generator = model_of(draw), torch.Generator().manual_seed(draw.seed + 1)
    exact = copy.deepcopy(model).double()
    asked = bound(model, frame_axis=2) if draw.layout in ("channels", "image") else bound(model)
    size = (draw.batch, draw.frames, draw.features)
    x = torch.rand(size, generator=generator) if draw.domain == "unit" else None
    x = torch.randn(size, generator=generator) if x is None else x
    x = x.to(getattr(torch, draw.dtype))
    inputs: tuple[Tensor, ...] = (model.as_passed(x),)
    if draw.tokens:
        inputs = (torch.randint(VOCABULARY, size[:2], generator=generator),)
        x, exact.embedding = model.embedding(inputs[0]).detach(), nn.Identity()
    lengths = None
    if draw.packing != "none":
        lengths = torch.randint(1, draw.frames + 1, size[:1], generator=generator)
        inputs = (*inputs, lengths)
    balls = balls_around(draw, x.double(), generator)

    def run(x: Tensor, lengths: Tensor | None) -> Tensor:
        z = exact.logits(exact.as_passed(x), lengths)
        return torch.cat([torch.zeros_like(z), z], 1) if draw.single else z

    with torch.no_grad():
        clean = run(x.double(), lengths)
    slack = RELATIVE[torch.float64] * (1 + clean.abs().amax(1))
    made = Setting(
        draw, model, asked, inputs, clean.argmax(1), balls,
        Oracle(run, lengths, clean.argmax(1)), slack, generator, counts,
    )  # fmt: skip
    return made


def check(draw: Draw, counts: Counter[str], methods: tuple[str, ...] = METHODS) -> None:
    """Everything about one draw.

    Raises:
        FalseClaimError: something is false.
        ContradictionError: the package says so itself, which is a false alarm or a fault.
    """
    made = set_up(draw, counts)
    try:
        for number, method in enumerate(methods):
            check_bounds(made, method)
            if number == 0:
                flip = smallest_flip(made.oracle, made.balls, made.slack, made.generator)
            check_certificates(made, flip, method)
        if draw.tokens:
            check_words(made, methods[-1])
        counts["models"] += 1
    except ContradictionError:
        raise
    except UnsupportedModelError as error:
        counts["refused"] += 1
        counts["refused: " + str(error)[:60]] += 1
    counts["points"] += made.oracle.points[0]


def check_bounds(made: Setting, method: str) -> None:
    """Logits and margins at points of balls of any size lie where they are said to lie."""
    ends = ("logits", "one logit")
    power = float(torch.rand((), generator=made.generator)) * 7.7 - 7
    size = torch.full((len(made.target),), 10.0**power).double()
    proof = made.certify(size, method, probes=2)
    if made.draw.end in ends:
        ball = made.balls.at(size)
        lower, upper = logit_bounds(made.asked, made.inputs, ball, method=method, probes=0)
        slack = RELATIVE[lower.dtype] * (1 + torch.maximum(lower.abs(), upper.abs()).double())
    for points in _points(made, size):
        z = made.oracle.logits(made.balls.center + points).detach()
        if made.draw.end in ends:
            made.hold((z >= lower - slack) & (z <= upper + slack), f"logit bounds, {method}")
        if made.draw.end != "clipped":
            own = z.gather(1, made.target[:, None])
            under = proof.margins <= own - z + made.slack[:, None] + 1e-9 * proof.margins.abs()
            same = torch.nn.functional.one_hot(made.target, z.shape[1]).bool()
            made.hold(under | same | proof.margins.isnan(), f"margins, {method}")
    least = least_of_grid(made.oracle, made.balls, size)
    if least is not None and made.draw.end != "clipped":
        made.counts["subdivided"] += len(least)
        made.hold(proof.margin <= least + made.slack, f"margins by subdivision, {method}")


def _points(made: Setting, size: Tensor) -> list[Tensor]:
    """Corners, points inside, and the end of a descent."""
    some = [
        made.balls.points(size, made.generator, corners=corners)
        for corners in (True, False)
        for _ in range(12)
    ]
    return [*some, descend(made.oracle, made.balls, size, some[0], 10)]


def check_certificates(made: Setting, flip: Tensor, method: str) -> None:
    """None where the class was seen to flip; below, none that an attack breaks."""
    finite = flip.isfinite() & (flip <= LARGEST)
    beyond = torch.where(finite, flip * (1 + 1e-9), LARGEST)
    proof = made.certify(beyond, method)
    made.hold(~(proof.certified & finite), f"certified where the class flips, {method}")
    best = torch.where(proof.certified, beyond, 0.0)
    for share in (1 / 1.02, 1 / 1.5, 1 / 4, 1e-2):
        open_ = best == 0
        if not bool(open_.any()):
            break
        size = torch.where(open_, share * beyond, best)
        proof = made.certify(size, method)
        best = torch.where(open_ & proof.certified, size, best)
    _attack(made, best, method)
    near = (best > 0) & finite
    made.counts["attacked certificates"] += int((best > 0).sum())
    made.counts["attacks within 1.5 x"] += int((near & (flip <= 1.5001 * best)).sum())
    check_search(made, flip, method)
    check_shifted(made, best, method)
    check_batches(made, best, method)


def _attack(made: Setting, best: Tensor, method: str) -> None:
    """Nothing just inside what was certified flips the class."""
    size = best * INSIDE
    for points in _points(made, size):
        margin = made.oracle.margins(made.balls.center + points).detach()
        made.hold((margin > -made.slack) | (best == 0), f"certificate, {method}")
    least = least_of_grid(made.oracle, made.balls, size)
    if least is not None:
        made.hold((least > -made.slack) | (best == 0), f"certificate by subdivision, {method}")


def check_search(made: Setting, flip: Tensor, method: str) -> None:
    """A radius that is searched lies below the flip too."""
    ball = made.balls.at(torch.ones_like(flip))
    plain = isinstance(ball, LpBall) and made.draw.epsilons == "one"
    if not plain or made.draw.seed % 3:
        return
    found = search_radius(
        made.asked, made.inputs, made.target, ball, method=method, max_radius=LARGEST, rtol=0.02,
        probes=0,
    )  # fmt: skip
    made.hold(found.radius.double() <= flip * (1 + 1e-9), f"radius, {method}")
    _attack(made, found.radius.double(), method)
    made.counts["attacked certificates"] += int((found.radius > 0).sum())
    near = flip.isfinite() & (flip <= 1.5001 * found.radius)
    made.counts["attacks within 1.5 x"] += int((near & (found.radius > 0)).sum())


def check_shifted(made: Setting, size: Tensor, method: str) -> None:
    """With logits shifted so that some point of the ball is wrong by next to nothing: no proof."""
    if made.draw.end == "clipped" or made.draw.single or not bool((size > 0).any()):
        return
    at = int(size.argmax())
    one = made.chosen(torch.tensor([at]))
    start = one.balls.points(size[at : at + 1], made.generator, corners=True)
    worst = descend(one.oracle, one.balls, size[at : at + 1], 0.01 * start, 20)
    z = one.oracle.logits(one.balls.center + worst).detach()[0]
    own = int(one.target)
    other = int(z.masked_fill(torch.arange(len(z)) == own, -math.inf).argmax())
    step = z[own] - z[other] + 1e-6 * (1 + z.abs().max())
    bias = made.model.head.bias
    kept = bias.detach().clone()
    with torch.no_grad():
        bias[other] += step.to(bias)
    moved = float(bias.detach()[other].double() - kept[other].double())
    try:
        if float(z[own] - z[other]) - moved < -float(one.slack):
            made.hold(~one.certify(size[at : at + 1], method).certified, f"shifted, {method}")
    finally:
        with torch.no_grad():
            bias.copy_(kept)


def check_batches(made: Setting, best: Tensor, method: str) -> None:
    """The margins of a sample are those in another order, alone, and twice over; in two threads."""
    whole = made.certify(best, method).margins
    count = len(best)
    orders = [torch.randperm(count, generator=made.generator), torch.tensor([count - 1])]
    orders.append(torch.arange(count).repeat(2))
    for order in orders[made.draw.seed % 3 :][:1]:
        other = made.chosen(order).certify(best[order], method).margins
        expected = whole[order]
        made.hold(torch.isclose(other, expected, 1e-6, 1e-7, True), f"other batches, {method}")
    if made.draw.seed % 16 == 0:
        answers: list[Tensor] = []
        tasks = [
            threading.Thread(target=lambda: answers.append(made.certify(best, method).margins))
            for _ in range(2)
        ]
        for task in tasks:
            task.start()
        for task in tasks:
            task.join()
        same = [torch.isclose(one, whole, 1e-9, 1e-9, True) for one in answers]
        made.hold(torch.stack(same) if len(same) == 2 else torch.tensor(False), "two threads")


def check_words(made: Setting, method: str) -> None:
    """Every sentence that substitutions allow, one by one."""
    tokens, lengths = made.inputs[0], made.oracle.lengths
    size, time = tokens.shape
    candidates = torch.randint(-1, VOCABULARY, (size, time, 2), generator=made.generator)
    rows = torch.where(candidates < 0, tokens[..., None], candidates)
    rows = torch.cat([tokens[..., None], rows], -1)
    for budget in range(1, min(time, 3) + 1):
        words = Substitutions(candidates, budget)
        proof = certify(made.asked, made.inputs, made.target, words, method=method, probes=0)
        for choice in itertools.product(range(3), repeat=time):
            if sum(place > 0 for place in choice) > budget:
                continue
            sentence = rows[:, torch.arange(time), torch.tensor(choice)]
            x = made.model.embedding(sentence).detach().double()
            margin = made.oracle.margins(x).detach()
            made.hold((margin > -made.slack) | ~proof.certified, f"words, {method}, {lengths}")
        made.counts["attacked certificates"] += int(proof.certified.sum())
