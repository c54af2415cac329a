"""Objectives: each is its formula, with its gradients, and costs no more than it has to."""

import copy
import math
import pickle

import pytest
import torch
from torch.nn.functional import cross_entropy

from popqorn_train import CrownIBP, LpBall, certify, objectives
from popqorn_train.bounds.methods import TRAINING
from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.certificates.pgd import attack
from popqorn_train.objectives import OBJECTIVES
from tests.problems import F64, build, predicted, sequences
from tests.zoo import zoo

EPSILON = 0.2
ROBUST = sorted(OBJECTIVES.keys() - {"standard"})
robust = pytest.mark.parametrize("name", ROBUST)


def problem(cell="gru", batch=6, **options):
    model, x = build(cell, **options), sequences(batch, 4)
    return model, x, (predicted(model, x) + (torch.arange(batch) % 3 == 0)) % 3


def objective(name, epsilon=EPSILON, **options):
    return OBJECTIVES[name](epsilon, **options)


def worst_case(margins, y):
    return cross_entropy(-margins.masked_fill(margins.isinf(), 0), y)


def bounded(model, x, y, ball, method):
    return worst_case(certify(model, x, y, ball, method=method).margins, y)


def expected(name, model, x, y, p, **domain):
    """The formula of an objective, from public functions."""
    ball = LpBall(EPSILON, p, **domain)
    if name in ("ibp", "popqorn"):
        return bounded(model, x, y, ball, TRAINING[name])
    if name == "crown-ibp":
        linear, interval = (certify(model, x, y, ball, method=CrownIBP(b)).margins for b in (1, 0))
        return worst_case(0.3 * linear + 0.7 * interval, y)
    attacked = cross_entropy(model(attack(model, x, y, ball, steps=5, restarts=1).moved), y)
    if name == "pgd":
        return attacked
    if name == "mtl":
        return 0.5 * attacked + 0.5 * bounded(model, x, y, ball, "ibp")
    near = attack(model, x, y, LpBall(0.3 * EPSILON, p, **domain), steps=5, restarts=1).moved
    return bounded(model, near, y, LpBall(0.7 * EPSILON, p, **domain), "ibp")


@pytest.mark.parametrize("domain", [{}, {"low": -1.5, "high": 1.5}])
@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("name", [name for name in ROBUST if name != "radius"])
def test_an_objective_is_its_formula(name, p, domain):
    model, x, y = problem()
    x = x.clamp(-1.2, 1.2)
    options = {"beta": 0.3, "fused": False} if name == "crown-ibp" else {}
    found = objective(name, p=p, **domain, **options)(model, x, y)
    torch.testing.assert_close(found, expected(name, model, x, y, p, **domain))


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
@pytest.mark.parametrize("kappa", [0.0, 0.4])
@robust
def test_epsilon_zero_gives_the_cross_entropy(name, kappa, cell):
    model, x, y = problem(cell)
    loss = objective(name, 0.0, kappa=kappa)
    torch.testing.assert_close(loss(model, x, y), cross_entropy(model(x), y))


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
@robust
def test_gradients_are_those_of_finite_differences(name, cell):
    # Where an attack ends is held fixed; with p = inf and few steps it stays where it is.
    model, x, y = problem(cell, batch=3)
    options = {"rtol": 1e-9} if name == "radius" else {}
    loss = objective(name, 0.1, kappa=0.2, **options)
    loss(model, x, y).backward()
    weights = list(model.parameters())
    generator = torch.Generator().manual_seed(1)
    steps = [1e-6 * torch.randn(w.shape, generator=generator, dtype=F64) for w in weights]
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for weight, step in zip(weights, steps, strict=True):
                weight += sign * step
            values.append(loss(model, x, y).item())
    slope = sum((w.grad * step).sum().item() for w, step in zip(weights, steps, strict=True))
    assert slope == pytest.approx((values[0] - values[1]) / 2, rel=2e-3)


@robust
def test_the_loss_of_a_batch_is_the_mean_over_its_samples(name):
    model, x, y = problem()
    loss = objective(name)
    alone = torch.stack([loss(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(loss(model, x, y), alone.mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@robust
def test_half_precision_has_the_loss_of_the_float32_copy(name, dtype):
    model, x, y = problem("lstm", gain=1.0)
    model, x = model.to(dtype), x.to(dtype)
    found = objective(name)(model, x, y)
    assert found.dtype == torch.float32
    # A radius starts from the clean error, which the half-precision kernel gives.
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if name == "radius" else {}
    copied = copy.deepcopy(model).float()
    torch.testing.assert_close(found, objective(name)(copied, x.float(), y), **tolerance)
    found.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("model", ["SentimentPacked", "GRUCellLoop", "BinarySqueezed"])
@robust
def test_packed_looped_and_binary_models_have_gradients(name, model):
    model, inputs = zoo()[model]
    y = torch.tensor([0, 1, 1])
    loss = objective(name, 0.01, kappa=0.5)(model, inputs, y)
    loss.backward()
    assert loss.isfinite()
    assert any(weight.grad is not None and weight.grad.any() for weight in model.parameters())


@robust
def test_an_input_that_is_nan_gives_nan(name):
    model, x, y = problem()
    x[0, 1, 2] = math.nan
    assert objective(name)(model, x, y).isnan()


def test_standard_is_the_cross_entropy_and_bounds_nothing(monkeypatch):
    model, x, y = problem()
    loss, calls = objectives.standard(), []
    loss(model, x, y)
    model.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(BoundModel, "instance", lambda *_, **__: pytest.fail("looked at the trace"))
    torch.testing.assert_close(loss(model, x, y), cross_entropy(model(x), y))
    assert len(calls) == 2


@robust
def test_with_kappa_one_any_objective_is_standard(name, monkeypatch):
    model, x, y = problem()
    loss, standard = objective(name, kappa=1.0), objectives.standard()(model, x, y)
    loss(model, x, y)
    monkeypatch.setattr(BoundModel, "instance", lambda *_, **__: pytest.fail("looked at the trace"))
    assert torch.equal(loss(model, x, y), standard)


def test_what_cannot_be_bounded_is_refused_at_the_first_call():
    model, x, y = problem()
    model.head = torch.nn.Sequential(model.head, torch.nn.Softmin(1))
    with pytest.raises(Exception, match="Softmin"):
        objectives.ibp(0.1, kappa=1.0)(model, x, y)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_beta_ends_at_linear_and_at_interval_bounds(beta, monkeypatch):
    model, x, y = problem()
    loss = objectives.crown_ibp(EPSILON, beta=1 - beta, fused=False)
    loss.beta = beta
    found = loss(model, x, y)
    linear = certify(model, x, y, LpBall(EPSILON), method=CrownIBP(1.0)).margins
    ends = {1.0: worst_case(linear, y), 0.0: objectives.ibp(EPSILON)(model, x, y)}
    torch.testing.assert_close(found, ends[beta], rtol=1e-12, atol=0)
    monkeypatch.setattr("popqorn_train.bounds.enclosure.Relaxer", lambda *_: 1 / 0)
    if beta == 0:
        assert torch.equal(loss(model, x, y), found)  # nothing was enclosed between lines


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_a_beta_out_of_range_is_refused(beta):
    with pytest.raises(ValueError, match="`beta`"):
        objectives.crown_ibp(0.1, beta=beta)
    with pytest.raises(ValueError, match="`beta`"):
        CrownIBP(beta)
    loss = objectives.crown_ibp(0.1)
    loss.beta = beta
    with pytest.raises(ValueError, match="`beta`"):
        loss(*problem())


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_objectives_are_in_order(cell, p):
    model, x, y = problem(cell)
    found = {
        name: objective(name, p=p)(model, x, y).item()
        for name in ("pgd", "popqorn", "ibp", "mtl", "sabr")
    }
    assert cross_entropy(model(x), y).item() < found["pgd"] < found["mtl"] < found["ibp"]
    assert found["pgd"] < found["popqorn"] <= found["ibp"]
    assert found["sabr"] < found["ibp"]


def test_mtl_ends_at_pgd_and_at_ibp():
    model, x, y = problem()
    assert torch.equal(
        objectives.mtl(EPSILON, alpha=0.0)(model, x, y), objective("pgd")(model, x, y)
    )
    assert torch.equal(
        objectives.mtl(EPSILON, alpha=1.0)(model, x, y), objective("ibp")(model, x, y)
    )


@robust
def test_settings_reach_the_objective(name):
    mask = torch.tensor([True, False, True, True])
    options = {"low": -1.0, "high": 2.0, "frames": mask, "scope": "sequence", "kappa": 0.25}
    ball = objective(name, 0.3, p=2, **options).ball()
    assert (ball.epsilon, ball.p, ball.low, ball.high, ball.scope) == (0.3, 2, -1, 2, "sequence")
    assert torch.equal(ball.frames, mask)
    assert objective(name, **options).kappa == 0.25
    text = repr(objective(name, **options))
    assert all(f"{setting}=" in text for setting in ("epsilon", "kappa", "p", "low", "scope"))


@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "mtl", "sabr"])
def test_the_signal_term_is_added(name):
    model, x, y = problem()
    plain = objective(name).parts(model, x, y)
    parts = objective(name, signal=0.5).parts(model, x, y)
    assert parts.signal > 0 == plain.signal
    torch.testing.assert_close(parts.total, plain.total + 0.5 * parts.signal)


@robust
def test_an_objective_is_copied_pickled_and_keeps_nothing_in_the_state_dict(name):
    model, x, y = problem()
    loss = objective(name)
    expected = loss(model, x, y)
    assert not loss.state_dict()
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(model, x, y), expected)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_command_line_can_name_an_objective(name):
    jsonargparse = pytest.importorskip("jsonargparse")
    function = OBJECTIVES[name].__name__
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=objectives.Objective)
    args = ["--loss", f"popqorn_train.objectives.{function}"]
    if name != "standard":
        args += ["--loss.epsilon", "0.1", "--loss.p", ".inf", "--loss.low", "0.0"]
    made = parser.instantiate_classes(parser.parse_args(args)).loss
    direct = OBJECTIVES[name](
        *([] if name == "standard" else [0.1]), **({} if name == "standard" else {"low": 0.0})
    )
    assert repr(made) == repr(direct)
