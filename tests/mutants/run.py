"""Does a test fail where the library is wrong? Plant one fault after another and see.

    make mutants                                every mutant of table.toml
    make mutants ARGS="--only no-rounding"      some of them, by id
    make mutants ARGS="--workers 2"             two at once

A mutant is a text of one file and what takes its place. It is planted in a copy of the repository,
where its tests run with a limit of time; it dies if one of them fails. The status is 0 if at least
95 % of the mutants die, every text is there exactly once, and all tests pass without a mutant.
"""

import argparse
import ast
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("table.toml")
SHARE = 0.95  # of the mutants that are not equivalent
LIMIT = 60.0  # seconds a mutant
# What running leaves behind, and what no test reads.
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", ".*_cache", "*.egg-info", "build", "dist", "runs",
    "lightning_logs", "wandb",
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A fault to plant.

    Attributes:
        id: a few words.
        file: where, from the root of the repository.
        before: text that is there exactly once.
        after: what takes its place.
        tests: files or test ids that should fail, the quickest first.
        equivalent: why no test can fail; empty for all others.
    """

    id: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...] = ()
    equivalent: str = ""


class Outcome(NamedTuple):
    """What became of a mutant: ``killed``, ``survived``, ``timeout``, ``error`` or ``equivalent``.

    Attributes:
        id: of the mutant.
        verdict: see above; an error is a run that failed otherwise than by a test.
        seconds: it took.
        detail: the test that failed, or the end of what was printed.
    """

    id: str
    verdict: str
    seconds: float
    detail: str


def read(table: Path) -> list[Mutant]:
    """The mutants of a table."""
    rows = tomllib.loads(table.read_text())["mutant"]
    return [Mutant(**{**row, "tests": tuple(row.get("tests", ()))}) for row in rows]


def misfits(mutants: Sequence[Mutant], root: Path) -> list[str]:
    """What in a table does not fit the repository, one sentence each."""
    found = [f"{id}: the id is there {n} times." for id, n in _repeated(mutants)]
    for mutant in mutants:
        file = root / mutant.file
        count = file.read_text().count(mutant.before) if file.is_file() else 0
        if count != 1:
            found.append(f"{mutant.id}: `before` is {count} times in {mutant.file}, expected once.")
        if mutant.before == mutant.after:
            found.append(f"{mutant.id}: `after` changes nothing.")
        if bool(mutant.tests) == bool(mutant.equivalent):
            found.append(f"{mutant.id}: either `tests` or the argument `equivalent` is needed.")
        missing = [test for test in mutant.tests if not _exists(test, root)]
        found += [f"{mutant.id}: there is no test {test}." for test in missing]
    return found


def _repeated(mutants: Sequence[Mutant]) -> list[tuple[str, int]]:
    counts = Counter(mutant.id for mutant in mutants)
    return [(id, count) for id, count in counts.items() if count > 1]


def _exists(test: str, root: Path) -> bool:
    """Whether a file defines a test; its parameters are known to pytest alone."""
    file, _, name = test.partition("::")
    if not (root / file).is_file():
        return False
    tree = ast.parse((root / file).read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return not name or name.partition("[")[0] in names


def copy_of(root: Path, folder: Path) -> Path:
    """Copy a repository, so that imports and tests come from the copy."""
    copy = folder / "copy"
    shutil.copytree(root, copy, symlinks=True, ignore=_LEFT_OUT)
    for name in ("callbacks", "recipes"):  # as `make` links them
        link = copy / "popqorn_train" / name
        if (copy / name).is_dir() and not link.is_symlink():
            link.symlink_to(Path("..") / name)
    return copy


@contextmanager
def planted(mutant: Mutant, root: Path) -> Iterator[None]:
    """Put a mutant into a copy, and take it out again."""
    file = root / mutant.file
    text = file.read_text()
    file.write_text(text.replace(mutant.before, mutant.after))
    try:
        yield
    finally:
        file.write_text(text)


class Runner:
    """Runs tests in copies of a repository, one a worker.

    Args:
        root: of the repository, which is only read.
        folder: where the copies go.
        workers: mutants at once.
        limit: seconds a mutant.
    """

    def __init__(self, root: Path, folder: Path, *, workers: int = 1, limit: float = LIMIT) -> None:
        self.workers, self.limit = workers, limit
        self._copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for index in range(workers):
            self._copies.put(copy_of(root, folder / str(index)))
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = threading.Event()

    def unmutated(self, tests: Sequence[str]) -> Outcome:
        """Run tests as they are: nothing may fail, so that it is the mutant that fails later."""
        copy = self._copies.get()
        try:
            return self._pytest("unmutated", tests, copy, None)
        finally:
            self._copies.put(copy)

    def outcomes(self, mutants: Sequence[Mutant]) -> Iterator[Outcome]:
        """What becomes of each mutant, in order."""
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                yield from pool.map(self._outcome, mutants)
            except BaseException:
                self.stop()
                pool.shutdown(cancel_futures=True)
                raise

    def stop(self) -> None:
        """End the tests that run; no others start."""
        self._stopped.set()
        for process in [*self._running]:
            _end(process)

    def _outcome(self, mutant: Mutant) -> Outcome:
        if mutant.equivalent or self._stopped.is_set():
            verdict = "equivalent" if mutant.equivalent else "error"
            return Outcome(mutant.id, verdict, 0.0, mutant.equivalent or "stopped")
        copy = self._copies.get()
        try:
            with planted(mutant, copy):
                return self._pytest(mutant.id, mutant.tests, copy, self.limit)
        finally:
            self._copies.put(copy)

    def _pytest(self, name: str, tests: Sequence[str], copy: Path, limit: float | None) -> Outcome:
        # Compiled files tell a mutant from its original by size and second alone: write none.
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--color=no"]
        command += ["-p", "no:cacheprovider", *tests]
        started = time.monotonic()
        with subprocess.Popen(
            command,
            cwd=copy,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that Ctrl-C reaches this script first
        ) as process:
            self._running.add(process)
            try:
                output, _ = process.communicate(timeout=limit)
                status = process.returncode
            except subprocess.TimeoutExpired:
                output, status = "", None
            finally:
                _end(process)
                self._running.discard(process)
        verdict = {0: "survived", 1: "killed", None: "timeout"}.get(status, "error")
        return Outcome(name, verdict, time.monotonic() - started, _detail(verdict, output))


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a process and what it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _detail(verdict: str, output: str) -> str:
    failed = re.findall(r"^(?:FAILED|ERROR) (.*?)(?: - |$)", output, re.MULTILINE)
    if verdict == "killed" and failed:
        return str(failed[0])
    if verdict == "timeout":
        return "no test failed in time; on a busy machine, raise --limit"
    last = [line for line in output.splitlines() if line.strip()][-1:]
    return "; ".join([*failed, *last])


def share(outcomes: Sequence[Outcome]) -> float:
    """Share of the mutants that die, of those that are not equivalent."""
    counted = [outcome for outcome in outcomes if outcome.verdict != "equivalent"]
    killed = sum(outcome.verdict == "killed" for outcome in counted)
    return killed / len(counted) if counted else 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module; returns the exit status."""
    options = _parser().parse_args(arguments)
    mutants = read(options.file)
    if unknown := set(options.only or ()) - {mutant.id for mutant in mutants}:
        raise SystemExit(f"`--only` names no mutant of {options.file}: {', '.join(unknown)}.")
    mutants = [mutant for mutant in mutants if not options.only or mutant.id in options.only]
    if found := misfits(mutants, options.root):
        print("\n".join(found))
        return 1
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        runner = Runner(options.root, Path(folder), workers=options.workers, limit=options.limit)
        try:
            return _report(runner, mutants)
        except KeyboardInterrupt:
            runner.stop()
            print("stopped")
            return 130


def _report(runner: Runner, mutants: Sequence[Mutant]) -> int:
    tests = dict.fromkeys(test for mutant in mutants for test in mutant.tests)
    plain = runner.unmutated([*tests]) if tests else Outcome("unmutated", "survived", 0.0, "")
    if plain.verdict != "survived":
        print(f"Without a mutant: {plain.detail}. Mend that first.")
        return 1
    print(f"without a mutant all tests pass, {plain.seconds:.0f} s", flush=True)
    outcomes = []
    for outcome in runner.outcomes(mutants):
        outcomes.append(outcome)
        print(f"{outcome.verdict:10} {outcome.seconds:5.1f} s  {outcome.id}: {outcome.detail}")
        sys.stdout.flush()
    counts = Counter(outcome.verdict for outcome in outcomes)
    said = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    print(f"{share(outcomes):.1%} of the mutants that are not equivalent died ({said})")
    return int(share(outcomes) < SHARE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", metavar="ID", help="mutants to plant; all of them")
    parser.add_argument("--workers", type=int, default=1, help="mutants at once")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds a mutant")
    parser.add_argument("--file", type=Path, default=TABLE, help="another table")
    parser.add_argument("--root", type=Path, default=ROOT, help="another repository")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    sys.exit(main())
