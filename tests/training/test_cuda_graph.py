"""Programs as CUDA graphs, on a stand-in for a device; tests/test_gpu.py has a real one."""

import contextlib

import pytest
import torch

from popqorn_train.training.cuda_graph import replayed


def work(x, y):
    return [x * y, (x + y).sum(0)]


class Recorder:
    """A program, and a graph that repeats what its second call did, in the same place."""

    def __init__(self):
        self.calls = []

    def program(self, *inputs):
        self.calls.append((inputs, work(*inputs)))
        return self.calls[-1][1]

    def replay(self):
        inputs, found = self.calls[1]  # the first one warmed up
        for old, new in zip(found, work(*inputs), strict=True):
            old.copy_(new)


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    for name in ("graph", "device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: contextlib.nullcontext())
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made)
    return made


def inputs(seed):
    generator = torch.Generator().manual_seed(seed)
    whole, some = (torch.randn(*shape, generator=generator) for shape in ((4, 3), (4, 1)))
    return whole.T.contiguous().T, some.expand(4, 3)


def test_every_call_has_its_own_numbers(recorder):
    run = replayed(recorder.program, inputs(0))
    found = [run(*inputs(seed)) for seed in (1, 2)]  # the first one must outlive the second
    torch.testing.assert_close(found, [work(*inputs(seed)) for seed in (1, 2)])
    assert len(recorder.calls) == 2


def test_inputs_keep_their_layout(recorder):
    given = inputs(0)
    replayed(recorder.program, given)
    for own, x in zip(recorder.calls[1][0], given, strict=True):
        assert own.stride() == x.stride()
        assert own.data_ptr() != x.data_ptr()
        assert torch.equal(own, x)


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so(recorder, monkeypatch, caplog):
    def refused(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refused)
    program = recorder.program
    assert replayed(program, inputs(0)) is program
    assert "without a CUDA graph: operation not permitted" in caplog.text
    windows = torch.randn(6).unfold(0, 3, 1)  # read twice in part, so never written as a whole
    assert replayed(program, (windows, windows)) is program
