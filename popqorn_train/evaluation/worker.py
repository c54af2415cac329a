"""A process of its own that certifies snapshots of a model while training goes on.

Jobs come in on its standard input and answers go out on its standard output, each a length of
8 bytes and so many bytes. It ends with its input, or with the process that started it. A snapshot
is the whole module, not its weights alone: attributes and buffers that are in no state dict belong
to what is certified. What a module reads elsewhere cannot travel with it, so the outputs that
training has seen are compared with those of the copy first.
"""

import contextlib
import io
import os
import pickle
import runpy
import struct
import sys
import threading
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.certificates.fidelity import agree, rounding_of
from popqorn_train.certificates.inputs import named_inputs
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.evaluation.batches import Picked
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.sample_rows import SampleRow
from popqorn_train.evaluation.set_aside import examined

_LENGTH = struct.Struct(">Q")
_MARK = "POPQORN_WORKER"
_NICENESS = 10  # training comes first where both want the same core


@dataclass(frozen=True)
class Job:
    """What a worker needs for one certification.

    Attributes:
        model: a snapshot.
        question: what is asked about every sample; None only compares the outputs.
        picked: samples that were set aside.
        known: rows of these samples from when they were last certified.
        outputs: what the model returned for them where it trains.
    """

    model: BoundModel
    question: Examination | None
    picked: Sequence[Picked]
    known: Sequence[SampleRow]
    outputs: Sequence[Any]

    @classmethod
    def of(
        cls,
        model: BoundModel,
        question: Examination | None,
        picked: Sequence[Picked],
        known: Sequence[SampleRow] = (),
    ) -> "Job":
        """A job about a model as it is now."""
        return cls(model, question, picked, known, [_output(model, part) for part in picked])

    def packed(self) -> bytes:
        """As bytes: the snapshot.

        Raises:
            Exception: something in the model cannot be pickled.
        """
        file = io.BytesIO()
        torch.save(self, file)
        return file.getvalue()


class Ready(NamedTuple):
    """The worker has started."""


class Advanced(NamedTuple):
    """So many more samples are done."""

    samples: int


class Found(NamedTuple):
    """A job is done.

    Attributes:
        rows: of its samples.
        seconds: that it took.
        problem: what kept samples without a row from having one.
    """

    rows: list[SampleRow]
    seconds: float
    problem: str = ""


Answer = Ready | Advanced | Found


def send(stream: IO[bytes], data: bytes) -> None:
    """Write a message.

    Raises:
        OSError: nobody reads it.
    """
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes:
    """Read a message.

    Raises:
        EOFError: nobody writes any more.
    """
    head = stream.read(_LENGTH.size)
    data = stream.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
    if not data:
        raise EOFError
    return data


class _Reported:
    """Progress that is sent to the process that trains."""

    def __init__(self, say: Any) -> None:
        self._say = say

    def advance(self, count: int) -> None:
        self._say(Advanced(count))

    def close(self) -> None:
        """Do nothing."""


def _output(model: BoundModel, picked: Picked) -> Any:
    with torch.no_grad(), undisturbed(model.model):
        return model.run(named_inputs(model.model, picked.inputs))


def _compare(job: Job) -> None:
    """Refuse a copy that computes something else than the model it was made of.

    Raises:
        ValueError: its outputs differ by more than rounding.
    """
    for picked, theirs in zip(job.picked, job.outputs, strict=True):
        ours = _output(job.model, picked)
        if not (isinstance(ours, Tensor) and isinstance(theirs, Tensor)):
            continue  # refused for what it returns when it is bounded
        dtype = job.model.weights_dtype or theirs.dtype
        near = 10 * rounding_of(theirs, torch.zeros_like(theirs[:1]), dtype)
        if theirs.shape != ours.shape or not agree(ours, theirs, near).all():
            raise ValueError(
                f"the copy of {type(job.model.model).__name__} in the worker returns other logits "
                "than the one that trains: its forward reads something that is not part of the "
                "module, the trainer or a global for example. Make it an attribute of the module, "
                "or leave `background` off."
            )


class _Server:
    """Answers jobs one after the other.

    Args:
        say: sends an answer.
    """

    def __init__(self, say: Any) -> None:
        self._say = say
        self._known: dict[int, SampleRow] = {}

    def serve(self, data: bytes) -> None:
        """Answer one job; whatever it raises is an answer too."""
        started = time.perf_counter()
        try:
            rows, problem = self._examined(torch.load(io.BytesIO(data), weights_only=False))
        except Exception as error:
            rows, problem = [], f"{type(error).__name__}: {error}"
        self._say(Found(rows, time.perf_counter() - started, problem))

    def _examined(self, job: Job) -> tuple[list[SampleRow], str]:
        _compare(job)
        if job.question is None:
            return [], ""
        # What was found out here is newer than what the other process had when it sent the job.
        known = {row.index: row for row in job.known} | self._known
        reported = _Reported(self._say)
        rows, failure = examined(job.question, job.model, job.picked, [*known.values()], reported)
        self._known |= {row.index: row for row in rows if row.answered}
        return rows, "" if failure is None else f"{type(failure).__name__}: {failure}"


def in_worker() -> bool:
    """Whether this process is a worker."""
    return _MARK in os.environ


def _import_main(source: dict[str, str] | None) -> None:
    """Run the script that training was started with, all but what only the script itself does."""
    if source is None:
        return
    if "name" in source:
        found = runpy.run_module(source["name"], run_name="__mp_main__", alter_sys=True)
    else:
        found = runpy.run_path(source["path"], run_name="__mp_main__")
    main = types.ModuleType("__mp_main__")
    vars(main).update(found)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main


def _end_with(parent: int) -> None:
    """End when the process that started this one is gone, also in the middle of a job."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main(settings: dict[str, Any]) -> None:
    """Answer what comes in, until nothing does.

    Args:
        settings: ``parent`` process, ``threads``, ``dtype`` by default, ``main``: the script.
    """
    os.environ[_MARK] = str(os.getpid())
    if os.name == "posix":
        threading.Thread(target=_end_with, args=(settings["parent"],), daemon=True).start()
    with contextlib.suppress(AttributeError, OSError):
        os.nice(_NICENESS)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what user code prints must not pass for an answer
    torch.set_num_threads(settings["threads"])
    torch.set_default_dtype(getattr(torch, settings["dtype"]))

    def say(answer: Answer) -> None:
        send(out, pickle.dumps(answer))

    _import_main(settings["main"])
    say(Ready())
    server = _Server(say)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            server.serve(receive(sys.stdin.buffer))
