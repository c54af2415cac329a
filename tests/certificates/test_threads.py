"""Threads certify, run and train models at the same time without hearing of each other."""

import contextlib
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from torch.nn.utils import rnn

from popqorn_train import LpBall, certify, logit_bounds
from popqorn_train.certificates.isolation import _holders, undisturbed
from popqorn_train.tracing.process_settings import Shared
from tests.problems import build, sequences

ROUNDS = 12


class Packed(nn.Module):
    """Calls what is taken over while another thread records: packing, ``math``, other modules."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.RNN(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x, lengths):
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.head(self.rnn(packed)[1][-1]) / math.sqrt(4.0)


def settings():
    cudnn = torch.backends.cudnn
    return (
        torch.get_float32_matmul_precision(),
        cudnn.enabled,
        nn.Module.__call__,
        nn.Module.__getattr__,
        rnn.pack_padded_sequence,
        math.sqrt,
    )


def together(*jobs):
    """Run jobs in threads of their own, started at once; the first error is raised."""
    ready = threading.Barrier(len(jobs))

    def run(job):
        ready.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result(120) for future in [pool.submit(run, job) for job in jobs]]


def test_two_threads_may_certify_one_model():
    model, x = build("gru").train(), sequences(3, 4)
    model.head.eval()  # flags are put back one by one
    modes, before = [module.training for module in model.modules()], settings()
    target = model.eval()(x).argmax(1)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    expected = certify(model, x, target, LpBall(0.1), method="crown-ibp").margins

    def ask():
        asked = range(ROUNDS)
        return [certify(model, x, target, LpBall(0.1), method="crown-ibp").margins for _ in asked]

    for margins in together(ask, ask, ask):
        assert all(torch.equal(found, expected) for found in margins)
    assert [module.training for module in model.modules()] == modes
    assert settings() == before
    assert not _holders


def test_a_model_and_a_part_of_it_take_turns():
    model, x = build("gru").train(), sequences(3, 4)
    order = []

    def hold(module, name):
        with undisturbed(module):
            order.append(name)
            assert not model.rnn.training
            order.append(name)

    for _ in range(ROUNDS):
        together(lambda: hold(model, "whole"), lambda: hold(model.rnn, "part"))
    assert all(one == two for one, two in zip(order[::2], order[1::2], strict=True))
    assert model.training
    assert model.rnn.training
    logit_bounds(model, x, LpBall(0.1), method="ibp")


def test_a_thread_waits_until_another_leaves_the_model():
    model = build("gru")
    held, entered = threading.Event(), threading.Event()

    def hold():
        with undisturbed(model):
            held.set()
            return entered.wait(0.2)

    def enter():
        held.wait(120)
        with undisturbed(model.rnn):
            entered.set()

    early, _ = together(hold, enter)
    assert not early
    assert entered.is_set()


def test_other_models_run_and_train_while_one_is_recorded():
    torch.manual_seed(0)
    other, x = Packed(), torch.randn(4, 5, 3)
    lengths = torch.tensor([5, 4, 2, 1])
    expected, gradients = other(x, lengths), []
    done, stepped = threading.Event(), threading.Event()

    class Waiting(Packed):
        """Goes on after a step that the other thread has begun meanwhile."""

        def forward(self, x, lengths):
            for _ in range(2):
                stepped.clear()
                assert done.is_set() or stepped.wait(20)
            return super().forward(x, lengths)

    def train():
        count = 0
        try:
            while not done.is_set():
                other.zero_grad()
                output = other(x, lengths)
                assert torch.equal(output, expected)
                output.sum().backward()
                gradients.append(other.head.weight.grad.clone())
                count += 1
                stepped.set()
        finally:
            done.set()
            stepped.set()
        return count

    def ask():
        try:
            for seed in range(3):
                torch.manual_seed(seed)
                model = Waiting().eval()
                logit_bounds(model, (x, lengths), LpBall(0.1), method="ibp")
        finally:
            done.set()

    before = settings()
    trained, *_ = together(train, ask)
    assert trained > 0
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    assert settings() == before


def test_models_are_recorded_by_several_threads_at_once():
    before = settings()

    def ask(seed):
        torch.manual_seed(seed)
        model, x = Packed().double().eval(), torch.randn(4, 5, 3).double()
        lengths = torch.tensor([5, 4, 2, 1])
        bounds = [logit_bounds(model, (x, lengths), LpBall(0.1), method="ibp") for _ in range(6)]
        return all(torch.equal(found.lower, bounds[0].lower) for found in bounds)

    assert all(together(*[lambda seed=seed: ask(seed) for seed in range(4)]))
    assert settings() == before


def test_a_setting_of_the_process_lasts_until_the_last_thread_leaves_it():
    done = []

    @contextlib.contextmanager
    def setting():
        done.append("made")
        yield
        done.append("undone")

    shared = Shared(setting)
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    for _ in range(2):
        first.enter_context(shared())
        second.enter_context(shared())
        first.close()
        assert done == ["made"]
        second.close()
        assert done == ["made", "undone"]
        done.clear()
