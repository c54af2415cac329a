"""The worker process of a monitor: started, fed, replaced once, ended with the training.

A thread writes jobs and reads answers, so that the worker never waits for a hook of the trainer;
what has arrived is fetched by the training when it suits.
"""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from typing import IO, Any, NamedTuple, cast

import torch

from popqorn_train.evaluation.worker import Advanced, Answer, Found, in_worker, receive, send

_START = (
    "import json, sys; settings = json.loads(sys.argv.pop()); sys.path[:] = settings['path']; "
    "from popqorn_train.evaluation.worker import main; main(settings)"
)
_STARTS = 2  # a worker that ends is replaced once


class Parcel(NamedTuple):
    """A job on its way.

    Attributes:
        ticket: what the training knows it by.
        data: the job.
    """

    ticket: Any
    data: bytes


class Background:
    """One worker, and a queue of one, which keeps the newest job.

    Args:
        threads: of the worker.
        main: the script to import in it, see ``main_script``.

    Attributes:
        dropped: jobs that a newer one took the place of.
        lost: why there is no worker any more; empty as long as there is one.

    Raises:
        RuntimeError: in a worker, which has run the training script again.
    """

    def __init__(self, threads: int, main: dict[str, str] | None) -> None:
        if in_worker():
            raise RuntimeError(
                "the training was started again in its own worker process. Put all of it under "
                "`if __name__ == '__main__':`."
            )
        self._settings = {
            "path": [os.path.abspath(part) for part in sys.path],
            "parent": os.getpid(),
            "threads": threads,
            "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
            "main": main,
        }
        self.dropped, self.lost = 0, ""
        self._changed = threading.Condition()
        self._waiting: Parcel | None = None
        self._running: Parcel | None = None
        self._answers: list[tuple[Any, Found]] = []
        self._said: list[str] = []
        self._advanced = 0
        self._stopped = False
        self._process: subprocess.Popen[bytes] | None = None
        threading.Thread(target=self._work, daemon=True, name="certification").start()

    def submit(self, ticket: Any, data: bytes) -> None:
        """Give a job away; one that still waits is dropped."""
        with self._changed:
            self.dropped += self._waiting is not None
            self._waiting = Parcel(ticket, data)
            if self.lost:
                self._give_up()
            self._changed.notify_all()

    @property
    def tickets(self) -> list[Any]:
        """Of the jobs that are not answered, in their order."""
        with self._changed:
            return [parcel.ticket for parcel in (self._running, self._waiting) if parcel]

    @property
    def has_news(self) -> bool:
        """Whether something has arrived, or has happened."""
        return bool(self._answers or self._said)

    def arrived(self) -> list[tuple[Any, Found]]:
        """Answers since the last call, each with its ticket."""
        with self._changed:
            answers, self._answers = self._answers, []
        return answers

    def said(self) -> list[str]:
        """What has happened to the worker since the last call."""
        with self._changed:
            said, self._said = self._said, []
        return said

    def advanced(self, seconds: float) -> int:
        """Samples done since the last call; waits for some, or for an answer, so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._advanced or self._answers or self.lost, seconds)
            count, self._advanced = self._advanced, 0
        return count

    def stop(self) -> None:
        """End the worker, whatever it does."""
        with self._changed:
            self._stopped = True
            if self._process is not None:
                self._process.kill()
            self._changed.notify_all()

    def _work(self) -> None:
        for start in range(_STARTS):
            why = self._lifetime()
            if self._stopped:
                return
            with self._changed:
                if start + 1 < _STARTS:
                    self._said.append(f"the worker process ended ({why}) and is started again")
                else:
                    self.lost = f"the worker process ended {_STARTS} times, last with {why}"
                    self._give_up()
                self._changed.notify_all()

    def _lifetime(self) -> str:
        """Start a worker and feed it until it ends; why it did."""
        with tempfile.TemporaryFile() as errors:
            try:
                process = self._launched(errors)
            except OSError as error:
                return f"{type(error).__name__}: {error}"
            stdin, stdout = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
            with contextlib.suppress(EOFError, OSError):
                receive(stdout)
                while self._next():
                    self._ask(stdin, stdout)
            process.kill()  # it may have closed its output alone
            for pipe in (stdin, stdout):
                with contextlib.suppress(OSError):
                    pipe.close()
            return _ended(process.wait(), errors)

    def _launched(self, errors: IO[bytes]) -> "subprocess.Popen[bytes]":
        threads = str(self._settings["threads"])
        # A group of its own: Ctrl-C in a terminal is for the training, which ends the worker.
        group: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
        with self._changed:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(self._settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "OMP_NUM_THREADS": threads},
                **group,
            )
            if self._stopped:
                self._process.kill()
            return self._process

    def _next(self) -> bool:
        """Wait for a job to begin; False if there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._waiting or self._running)
            if self._waiting is not None:
                self.dropped += self._running is not None  # it has ended a worker already
                self._running, self._waiting = self._waiting, None
            return not self._stopped

    def _ask(self, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        """Send the job in hand and read what comes until it is answered."""
        parcel = cast(Parcel, self._running)
        send(stdin, parcel.data)
        answer: Answer | None = None
        while not isinstance(answer, Found):
            answer = pickle.loads(receive(stdout))
            with self._changed:
                if isinstance(answer, Advanced):
                    self._advanced += answer.samples
                elif isinstance(answer, Found):
                    self._answers.append((parcel.ticket, answer))
                    self._running, self._advanced = None, 0
                self._changed.notify_all()

    def _give_up(self) -> None:
        """Answer everything that is left."""
        for parcel in (self._running, self._waiting):
            if parcel is not None:
                self._answers.append((parcel.ticket, Found([], 0.0, self.lost)))
        self._running = self._waiting = None


def _ended(code: int, errors: IO[bytes]) -> str:
    """How a process ended, and the last thing that it said."""
    how = f"exit code {code}"
    if code < 0:
        how = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return f"{how}: {lines[-1].strip()}" if lines else how
