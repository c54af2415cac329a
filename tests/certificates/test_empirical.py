"""The empirical radius is one: something at that distance breaks, and no proof reaches it."""

import math

import pytest
import torch
from torch import nn

from popqorn_train import certified_radius, empirical_radius
from tests.problems import F64, NORMS, SOME_CELLS, build, predicted, sequences

some_cells = pytest.mark.parametrize("cell", SOME_CELLS)
norms = pytest.mark.parametrize("p", [*NORMS, 1.5])


class Straight(nn.Module):
    """Logits (0, w . x): its radius is |w . x| over the dual norm of w."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[3.0, -4.0, 0.5]], dtype=F64))

    def forward(self, x):
        logit = nn.functional.linear(x[:, 0], self.weight)
        return torch.cat([logit * 0.0, logit], 1)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("scope", ["frame", "sequence"])
@norms
@some_cells
def test_no_certified_radius_is_larger(cell, p, scope):
    model, x = build(cell), sequences(6, 4)
    y = predicted(model, x)
    broke = empirical_radius(model, x, y, p=p, scope=scope)
    assert (broke >= certified_radius(model, x, y, p=p, scope=scope)).all()


@norms
def test_it_is_exact_for_a_linear_model(p):
    model, x = Straight(), sequences(6, 1, features=3)
    y = predicted(model, x)
    exact = model(x)[:, 1].abs() / torch.linalg.vector_norm(model.weight, _dual(p))
    found = empirical_radius(model, x, y, p=p, max_radius=99.0)
    assert (found >= exact * (1 - 1e-9)).all()
    assert (found <= exact * 1.06).all()


def _dual(p):
    return {1: math.inf, math.inf: 1}.get(p, p / (p - 1) if 1 < p < math.inf else None)


@pytest.mark.one_in(4)
@norms
@some_cells
def test_smaller_attacks_by_hand_find_nothing_much_smaller(cell, p):
    model, x = build(cell), sequences(4, 3)
    y = predicted(model, x)
    found = empirical_radius(model, x, y, p=p, steps=40, restarts=4)
    coarse = empirical_radius(model, x, y, p=p, steps=10, restarts=1)
    assert (found <= coarse * 1.3).all()


def test_a_wrong_prediction_has_radius_zero_and_an_unbreakable_one_infinity():
    model, x = build("gru"), sequences(6, 4)
    y = predicted(model, x)
    wrong = (y + 1) % 3
    assert (empirical_radius(model, x, wrong) == 0).all()
    assert (empirical_radius(model, x, y, max_radius=1e-6) == math.inf).all()


@pytest.mark.one_in(2)
@some_cells
def test_a_sample_has_the_same_radius_alone_and_in_a_batch(cell):
    model, x = build(cell), sequences(6, 4)
    y = predicted(model, x)
    together = empirical_radius(model, x, y, p=2)
    alone = torch.cat([empirical_radius(model, x[i : i + 1], y[i : i + 1], p=2) for i in (0, 3)])
    torch.testing.assert_close(together[[0, 3]], alone, rtol=1e-9, atol=1e-12)


def test_float32_breaks_at_about_the_same_size_and_the_global_generator_is_left_alone():
    model, x = build("lstm"), sequences(6, 4)
    y = predicted(model, x)
    double, state = empirical_radius(model, x, y), torch.random.get_rng_state()
    single = empirical_radius(model.float(), x.float(), y)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert single.dtype == F64
    both = double.isfinite() & single.isfinite()
    assert both.sum() >= 3
    assert ((single / double)[both].log().abs() < 0.3).all()


def test_the_domain_keeps_radii_up():
    model, x = build("gru"), sequences(6, 4).clamp(-0.5, 0.5)
    y = predicted(model, x)
    free = empirical_radius(model, x, y, max_radius=1.0)
    clipped = empirical_radius(model, x, y, low=-0.5, high=0.5)
    assert (clipped >= 0.9 * free).all()


@pytest.mark.parametrize("options", [{"steps": 0}, {"restarts": 0}, {"rtol": 0}, {"p": 0.5}])
def test_bad_settings_are_refused(options):
    model, x = build("gru"), sequences(2, 3)
    with pytest.raises(ValueError, match=next(iter(options))):
        empirical_radius(model, x, predicted(model, x), **options)
