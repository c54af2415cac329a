"""What is checked of a draw; every check counts what it looked at, and a false claim raises.

B: batch, T: frames, N: features, C: classes.
"""

import itertools
import math
import threading
from collections import Counter

import torch
from torch import Tensor

from popqorn_train import (
    LpBall,
    Substitutions,
    UnsupportedModelError,
    certify,
    logit_bounds,
    search_radius,
)
from popqorn_train.errors import ContradictionError
from tests.fuzz.attacks import LARGEST, descend, least_of_grid, smallest_flip
from tests.fuzz.draws import Draw
from tests.fuzz.models import VOCABULARY
from tests.fuzz.setting import RELATIVE, Setting, set_up

METHODS = ("ibp", "crown-ibp", "popqorn-fast", "popqorn", "popqorn-tight", "popqorn-tightest")
INSIDE = 1 - 1e-6
UNFLIPPED = 8  # samples of a model that are certified although no attack flips them
SHARES = (1.0, 1 / 1.02, 1 / 1.15, 1 / 1.5, 1 / 4, 1e-2)  # of where the class flips


def check(
    draw: Draw, counts: Counter[str], methods: tuple[str, ...] = METHODS, *, one_in: int = 1
) -> None:
    """Everything about one draw; what costs most of a few of many draws, ``one_in`` so many.

    Raises:
        FalseClaimError: something is false.
        ContradictionError: the package says so itself, which is a false alarm or a fault.
    """
    made = set_up(draw, counts)
    more = (check_bounds, check_shifted, check_batches)
    try:
        flip = smallest_flip(made.oracle, made.balls, made.slack, made.generator)
        made, flip = _worth_asking(made, flip)
        for method in methods:
            best = check_certificates(made, flip, method)
            if draw.seed % max(one_in, 3) == 0:
                check_search(made, flip, method)
            for place, further in enumerate(more, 1):
                if (draw.seed + place) % one_in == 0:
                    further(made, best, method)
            check_threads(made, best, method)
        if draw.tokens:
            check_words(made, methods[-1])
        counts["models"] += 1
    except ContradictionError:
        raise
    except UnsupportedModelError as error:
        counts["refused"] += 1
        counts["refused: " + str(error)[:60]] += 1
    counts["points"] += made.oracle.points[0]


@torch.no_grad()
def is_lively(draw: Draw) -> bool:
    """Whether random corners flip the class of a quarter of the samples."""
    made = set_up(draw, Counter())
    one = torch.ones(len(made.target)).double()
    flips = one < 0
    for size in (one, LARGEST * one):
        points = made.balls.points(size, made.generator, corners=True)
        flips |= made.oracle.margins(made.balls.center + points) < -made.slack
    return bool(flips.double().mean() > 0.25)


def _worth_asking(made: Setting, flip: Tensor) -> tuple[Setting, Tensor]:
    """Samples that an attack flips, and a few of the others, which any bound may certify."""
    never = ~flip.isfinite()
    at = (~never | (never.cumsum(0) <= UNFLIPPED)).nonzero()[:, 0]
    return made.chosen(at), flip[at]


def check_bounds(made: Setting, _: Tensor, method: str) -> None:
    """Logits and margins at points of balls of any size lie where they are said to lie."""
    ends = ("logits", "one logit")
    power = float(torch.rand((), generator=made.generator)) * 7.7 - 7
    size = torch.full((len(made.target),), 10.0**power).double()
    proof = made.certify(size, method, probes=2)
    if made.draw.end in ends:
        ball = made.balls.at(size)
        lower, upper = logit_bounds(made.asked, made.inputs, ball, method=method, probes=0)
        slack = RELATIVE[lower.dtype] * (1 + torch.maximum(lower.abs(), upper.abs()).double())
        slack = slack + _rounded(made)
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


@torch.no_grad()
def _rounded(made: Setting) -> Tensor:
    """Ten times what rounding does to logits at the inputs, which are bounded in that precision."""
    own = made.model(*made.inputs).double().view(len(made.target), -1)
    return 10 * (own - made.oracle.logits(made.balls.center)[:, -own.shape[1] :]).abs()


def _points(made: Setting, size: Tensor) -> list[Tensor]:
    """Corners, points inside, and the end of a descent."""
    some = [
        made.balls.points(size, made.generator, corners=corners)
        for corners in (True, False)
        for _ in range(12)
    ]
    return [*some, descend(made.oracle, made.balls, size, some[0], 10)]


def check_certificates(made: Setting, flip: Tensor, method: str) -> Tensor:
    """None where the class was seen to flip, and none that an attack breaks.

    Returns:
        ``(B,)`` the largest size that was certified, or 0.
    """
    finite = flip.isfinite() & (flip <= LARGEST)
    beyond = torch.where(finite, flip * (1 + 1e-9), LARGEST)
    sizes = beyond * torch.tensor(SHARES, dtype=torch.float64)[:, None]
    every = torch.arange(len(flip)).repeat(len(SHARES))
    found = made.chosen(every).certify(sizes.flatten(), method).certified.view_as(sizes)
    made.hold(~(found[0] & finite), f"certified where the class flips, {method}")
    best = torch.where(found, sizes, 0.0).amax(0)
    _attack(made, best, method)
    _count(made, best, flip)
    return best


def _count(made: Setting, best: Tensor, flip: Tensor) -> None:
    """Count certificates that were attacked, and those just below which the class flips."""
    near = (best > 0) & flip.isfinite() & (flip <= 1.5001 * best)
    made.counts["attacked certificates"] += int((best > 0).sum())
    made.counts["attacks within 1.5 x"] += int(near.sum())


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
    if not plain:
        return
    found = search_radius(
        made.asked, made.inputs, made.target, ball, method=method, max_radius=LARGEST, rtol=0.02,
        probes=0,
    )  # fmt: skip
    made.hold(found.radius.double() <= flip * (1 + 1e-9), f"radius, {method}")
    _attack(made, found.radius.double(), method)
    _count(made, found.radius.double(), flip)


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
    """The margins of a sample are those in another order, alone, and twice over."""
    whole = made.certify(best, method).margins
    count = len(best)
    orders = [torch.randperm(count, generator=made.generator), torch.tensor([count - 1])]
    orders.append(torch.arange(count).repeat(2))
    for order in orders[made.draw.seed % 3 :][:1]:
        other = made.chosen(order).certify(best[order], method).margins
        expected = whole[order]
        made.hold(torch.isclose(other, expected, 1e-6, 1e-7, True), f"other batches, {method}")


def check_threads(made: Setting, best: Tensor, method: str) -> None:
    """Two threads that certify the same model get the same margins."""
    if made.draw.seed % 16:
        return
    answers: list[Tensor] = []
    tasks = [
        threading.Thread(target=lambda: answers.append(made.certify(best, method).margins))
        for _ in range(2)
    ]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    same = len(answers) == 2 and torch.isclose(*answers, 1e-9, 1e-9, True)
    made.hold(torch.as_tensor(same), "two threads")


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
