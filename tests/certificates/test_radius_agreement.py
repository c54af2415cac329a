"""Radii agree with certificates: no epsilon at which ``certify`` succeeds lies far above them."""

import itertools
import math

import pytest
import torch

from popqorn_train import LpBall, Start, certified_radius, certify, certify_loader, search_radius
from popqorn_train.bounds.methods import IBP, METHODS, Method
from popqorn_train.certificates.brackets import Brackets
from popqorn_train.evaluation.certification import count_certified
from tests.certificates.test_golden import lirpa
from tests.problems import CELLS, F64, build, predicted, sequences

RTOL = 1e-2


def largest_certified(model, x, y, radius, p, method, **domain):
    """The largest power of 1.1 around the radii at which every sample is certified, ``(B,)``."""
    exponents = torch.log(radius[radius > 0].double()) / torch.log(torch.tensor(1.1, dtype=F64))
    largest = torch.zeros_like(radius, dtype=F64)
    for exponent in range(int(exponents.min().floor()), int(exponents.max().ceil()) + 7):
        ball = LpBall(1.1**exponent, p, **domain)
        found = certify(model, x, y, ball, method=method).certified
        largest[found] = 1.1**exponent
    return largest


SLOW = pytest.param("gru", "popqorn-tight", marks=pytest.mark.slow)


@pytest.mark.one_in(8)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("p", [2, torch.inf])
@pytest.mark.parametrize(
    ("cell", "method"), [*itertools.product(CELLS, ["popqorn"]), ("tanh", "popqorn-tight"), SLOW]
)
def test_no_epsilon_of_a_grid_is_certified_above_the_radius(cell, method, p, dtype):
    batch = 4 if method == "popqorn-tight" else 8
    model, x = build(cell, gain=3.0).to(dtype), sequences(batch, 3, seed=5).to(dtype)
    y = predicted(model, x)
    radius = certified_radius(model, x, y, p=p, method=method, rtol=RTOL)
    assert certify(model, x, y, LpBall(radius, p), method=method).certified.all()
    assert (radius >= (1 - RTOL) * largest_certified(model, x, y, radius, p, method)).all()


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.3])
@pytest.mark.slow
def test_any_start_of_a_tight_search_keeps_the_promise(factor):
    model, x = build("gru", gain=3.0), sequences(3, 3, seed=5)
    y, method = predicted(model, x), "popqorn-tight"
    cold = search_radius(model, x, y, LpBall(0.0, 2), method=method, rtol=RTOL)
    start = Start(cold.radius * factor, cold.rate)
    warm = certified_radius(model, x, y, p=2, method=method, rtol=RTOL, start=start)
    assert (warm >= (1 - RTOL) * largest_certified(model, x, y, warm, 2, method)).all()
    torch.testing.assert_close(warm, cold.radius, rtol=RTOL, atol=0)


@pytest.mark.slow
def test_a_tight_radius_is_the_same_alone_and_in_a_batch():
    model, x = build("gru", gain=3.0), sequences(3, 3, seed=5)
    y = predicted(model, x)
    whole, alone = (
        certified_radius(model, x[rows], y[rows], method="popqorn-tight", rtol=RTOL)
        for rows in (slice(None), slice(1, 2))
    )
    torch.testing.assert_close(alone, whole[1:2], rtol=1e-9, atol=0)


def test_radii_count_what_certify_proves_at_the_epsilons_asked_for():
    model, x = build("gru").float(), sequences(12, 4, seed=5).float()
    y = predicted(model, x)
    radius = certified_radius(model, x, y, rtol=0.2)
    # Between the radius of a coarse search and that of a fine one, where counts would differ.
    epsilons = sorted(certified_radius(model, x, y, rtol=1e-3).double().mul(0.999).tolist())
    asked = certified_radius(model, x, y, rtol=0.2, epsilons=epsilons)
    rows = certify_loader(model, [(x, y)], rtol=0.2, epsilons=epsilons, progress=False)
    proofs = [certify(model, x, y, LpBall(one)).certified for one in epsilons]
    expected = [int(proof.sum()) for proof in proofs]
    grid = torch.tensor(epsilons, dtype=F64)
    assert count_certified(radius, grid).tolist() != expected
    assert count_certified(asked, grid).tolist() == expected
    kept = torch.tensor([row.radius for row in rows], dtype=F64)
    assert count_certified(kept, grid).tolist() == expected


def test_the_largest_radius_tried_is_counted_where_it_was_asked_for():
    model, x = build("gru").float(), sequences(4, 3).float()
    with torch.no_grad():
        model.head.weight.zero_()
    settings = {"max_radius": 0.1, "epsilons": (0.1,)}  # float32(0.1) lies above
    radius = certified_radius(model, x, predicted(model, x), **settings)
    assert count_certified(radius, torch.tensor([0.1], dtype=F64)).item() == 4


@pytest.mark.parametrize("epsilons", [(0.0,), (0.1, float("inf")), (-1.0,)])
def test_epsilons_that_are_not_positive_are_refused(epsilons):
    model, x = build("gru"), sequences(2, 3)
    with pytest.raises(ValueError, match="`epsilons` must be positive numbers, got"):
        certified_radius(model, x, predicted(model, x), epsilons=epsilons)


def searched(shape, guess, **options):
    one = torch.ones(1, dtype=F64)
    state = Brackets(one, one, 10 * one, guess * one, RTOL, **options)
    while len(chosen := state.open()):
        state.tell(chosen, shape(state.next))
    return state


ISLANDS = {
    "an island": lambda r: torch.where((r > 1.12) & (r < 1.24), 0.1, 1 - r),
    "two islands": lambda r: torch.where(((r * 5).floor() % 2 == 1) & (r < 1.5), 0.1, 1.1 - r),
    "proved, size unknown": lambda r: torch.where(r < 1.45, 1e-12, -0.7).to(r),
    "proved up to a jump": lambda r: torch.where(r < 1.45, (1.2 - r).clamp(min=1e-9), -3.0),
}


@pytest.mark.parametrize("guess", [0.01, 0.9, 1.15, 3.0])
@pytest.mark.parametrize("graded", [True, False])
@pytest.mark.parametrize("shape", ISLANDS.values(), ids=ISLANDS)
def test_no_rung_above_a_root_is_missed(shape, graded, guess):
    state = searched(shape, guess, graded=graded)
    grid = 1.1 ** torch.arange(-20, 20, dtype=F64)
    assert shape(state.lower) > 0
    assert state.lower >= (1 - RTOL) * grid[shape(grid) > 0].max()


def test_proofs_without_a_size_take_halving_alone():
    state = searched(ISLANDS["proved, size unknown"], 1.15, graded=False)
    assert state.evaluations <= 10


def test_monotone_margins_are_not_tried_again_above_the_root():
    counts = [searched(lambda r: 1 - r, 0.9, monotone=known).evaluations for known in (True, False)]
    assert counts[0] < counts[1]
    assert IBP.monotone
    assert not Method.monotone


def test_a_margin_far_enough_below_0_ends_the_search_above():
    counts = [searched(lambda r: 1 - r, 0.99, dip=dip).evaluations for dip in (0.03, 0.25)]
    assert counts[0] < counts[1]
    assert METHODS["popqorn-fast"].dip < METHODS["popqorn"].dip < Method.dip


@pytest.mark.parametrize("rate", [1.0, math.nan])
def test_epsilons_that_are_proved_above_a_dip_of_margins_are_counted(rate):
    """Margins of this network fall below 0 and rise again, 4 % above."""
    torch.manual_seed(54)
    model = build("lstm", gain=float(torch.empty(1).uniform_(0.5, 6)))
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    x = sequences(6, 4, seed=54).to(weight.dtype)
    y, ball = predicted(model, x), LpBall(0.0)
    options = {"method": "popqorn-fast", "rtol": RTOL}
    known = search_radius(model, x, y, ball, **options)
    grid = [float(r) * factor for r in known.radius if r > 0 for factor in (0.999, 1.0005)]
    start = Start(known.radius, known.rate * rate)
    found = search_radius(model, x, y, ball, **options, start=start, epsilons=grid)
    for epsilon in grid:
        proof = certify(model, x, y, LpBall(epsilon), method="popqorn-fast", probes=0)
        assert (found.radius >= epsilon)[proof.certified].all()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("method", ["popqorn", "popqorn-fast"])
@pytest.mark.parametrize("p", [2, torch.inf])
@pytest.mark.parametrize("cell", CELLS)
def test_margins_do_not_rise_again_above_the_radius(cell, p, method):
    model, x = build(cell, gain=3.0).float(), sequences(8, 3, seed=5).float()
    y = predicted(model, x)
    radius = certified_radius(model, x, y, p=p, method=method, rtol=RTOL)
    for factor in (1.02, 1.05, 1.1, 1.2, 1.35, 1.5):
        assert not certify(model, x, y, LpBall(factor * radius, p), method=method).certified.any()


def test_a_radius_of_the_golden_rnn_takes_few_margins(golden):
    _, model, x, y = lirpa(golden, "rnn_07f_032h")
    ball = LpBall(0.0, low=0.0, high=1.0)
    found = search_radius(model, x, y, ball, rtol=RTOL, probes=0)
    right = found.radius > 0
    assert 3 <= found.evaluations[right].double().mean() <= 4.2
    again = search_radius(model, x, y, ball, rtol=RTOL, probes=0, start=found.start)
    assert again.evaluations[right].double().mean() <= 4.2


@pytest.mark.slow  # minutes for all models: `make bench-targets` prints them
@pytest.mark.parametrize("epsilon", [0.01])
def test_of_the_golden_rnn_radii_count_what_certify_proves(golden, epsilon):
    _, model, x, y = lirpa(golden, "rnn_07f_032h")
    x, y, method, domain = x[:6], y[:6], "popqorn-tight", {"low": 0.0, "high": 1.0}
    radius = certified_radius(model, x, y, method=method, rtol=RTOL, epsilons=[epsilon], **domain)
    proof = certify(model, x, y, LpBall(epsilon, **domain), method=method)
    assert ((radius.double() >= epsilon) == proof.certified).all()
    for factor in (1 / (1 - 1.1 * RTOL), 1.05, 1.1):
        above = LpBall(radius * factor, **domain)
        assert not certify(model, x, y, above, method=method).certified.any()
