"""Chunks: results are equal whatever fits, and memory that runs out only halves them."""

import pytest
import torch

from popqorn_train import (
    LpBall,
    bound,
    certified_radius,
    certify,
    frame_radii,
    search_radius,
)
from popqorn_train.bounds.memory import Chunks, bytes_a_sample
from popqorn_train.bounds.methods import IBP, Popqorn
from popqorn_train.certificates.instance import Instance
from popqorn_train.operations.lift import Lifter
from tests.problems import CELLS, METHODS, build, predicted, sequences

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]
errors = pytest.mark.parametrize("error", ERRORS, ids=["device", "host", "python"])


def problem(cell="tanh", batch=9, time=4, **options):
    model, x = build(cell, **options), sequences(batch, time, seed=5)
    return model, x, predicted(model, x)


class Small(Popqorn):
    """A method that runs out of memory above some number of samples."""

    def __init__(self, most, error):  # methods are frozen
        object.__setattr__(self, "slopes", "lambda")
        object.__setattr__(self, "octagons", ())
        object.__setattr__(self, "most", most)
        object.__setattr__(self, "error", error)
        object.__setattr__(self, "sizes", [])

    def bounded(self, output, rows):
        self.sizes.append(len(rows))
        if len(rows) > self.most:
            raise self.error
        return super().bounded(output, rows)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("share", [0.001, 2.5, 100])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cell", CELLS)
def test_any_limit_gives_equal_margins(cell, method, share):
    model, x, y = problem(cell)
    case = bound(model).instance(x)
    limit = int(share * bytes_a_sample(case.graph(LpBall(0.1)), x)) + 1
    whole = certify(model, x, y, LpBall(0.1), method=method)
    found = certify(model, x, y, LpBall(0.1), method=method, max_bytes=limit)
    torch.testing.assert_close(found.margins, whole.margins, rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", [pytest.param(2, marks=pytest.mark.slow), float("inf")])
def test_any_limit_gives_equal_radii(p):
    model, x, y = problem()
    epsilon = {"low": x - 1, "high": x + 1}
    whole = search_radius(model, x, y, LpBall(0.0, p, **epsilon))
    found = search_radius(model, x, y, LpBall(0.0, p, **epsilon), max_bytes=1)
    torch.testing.assert_close(found.radius, whole.radius, rtol=1e-9, atol=0)
    assert torch.equal(found.evaluations, whole.evaluations)


@errors
def test_memory_that_runs_out_halves_the_chunk(error):
    model, x, y = problem()
    method = Small(2, error)
    found = certify(model, x, y, LpBall(0.1), method=method)
    assert method.sizes == [9, 4, 2, 2, 2, 2, 1]  # and grows again only after four in a row
    whole = certify(model, x, y, LpBall(0.1), method=Popqorn("lambda", ()))
    torch.testing.assert_close(found.margins, whole.margins, rtol=0, atol=1e-12)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("error", ERRORS, ids=["device", "host", "python"])
def test_radii_are_equal_when_memory_runs_out(error):
    model, x, y = problem()
    smooth = Popqorn("lambda", ())
    whole = certified_radius(model, x, y, method=smooth)
    torch.testing.assert_close(
        certified_radius(model, x, y, method=Small(3, error)), whole, rtol=1e-9, atol=0
    )
    torch.testing.assert_close(
        frame_radii(model, x, y, method=Small(7, error)),
        frame_radii(model, x, y, method=smooth),
    )


def test_the_size_comes_back_slowly():
    chunks, sizes = Chunks(1), []
    chunks.most = chunks.size = 64

    def run(some):
        sizes.append(len(some))
        if sum(sizes[:-1]) < 128 and len(some) > 8:  # trouble at first only
            raise torch.OutOfMemoryError
        return some

    every = torch.arange(300)
    assert torch.equal(chunks.map(run, every), every)
    assert sizes[:8] == [64, 32, 16, 8, 8, 8, 8, 16]
    assert max(sizes[8:]) > 16


@errors
def test_a_sample_that_does_not_fit_alone_says_so(error):
    model, x, y = problem()
    with pytest.raises(type(error)):
        certify(model, x, y, LpBall(0.1), method=Small(0, error))


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("no")])
def test_another_error_is_not_taken_for_it(error):
    model, x, y = problem()
    method = Small(2, error)
    with pytest.raises(type(error), match=str(error)):
        certify(model, x, y, LpBall(0.1), method=method)
    assert method.sizes == [9]


def test_memory_that_runs_out_while_the_graph_is_built_is_no_unsupported_model(monkeypatch):
    model, x, y = problem()
    real, calls = Lifter.run, []

    def run(self, step):
        if self.batch > 4 and step.kind == "module" and calls:
            raise torch.OutOfMemoryError
        return real(self, step)

    whole = certify(model, x, y, LpBall(0.1))
    graph = Instance.graph
    monkeypatch.setattr(Instance, "graph", lambda *args: (calls.append(1), graph(*args))[1])
    monkeypatch.setattr(Lifter, "run", run)
    found = certify(model, x, y, LpBall(0.1))
    torch.testing.assert_close(found.margins, whole.margins, rtol=0, atol=1e-12)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "1GB"])
@pytest.mark.parametrize("call", [certify, certified_radius, frame_radii])
def test_a_limit_that_is_no_size_is_refused(call, limit):
    extra = [LpBall(0.1)] if call is certify else []
    with pytest.raises(ValueError, match="`max_bytes` must be a positive integer or None"):
        call(*problem(), *extra, max_bytes=limit)


def test_intervals_take_no_slopes():
    model, x, _ = problem(time=30, hidden=32)
    output = bound(model).instance(x).graph(LpBall(0.1))
    assert 3 * IBP().bytes_a_sample(output, x) < bytes_a_sample(output, x)


def test_a_row_for_each_pair_of_outputs_counts():
    model, x, _ = problem(classes=40)
    output = bound(model).instance(x).graph(LpBall(0.1))
    assert IBP().bytes_a_sample(output, x) > 4 * x.element_size() * 40**2
