"""Workers of Ray find the rows of one process, whoever dies."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from popqorn_train import Box, LpBall, certify_loader, rows_on_ray
from popqorn_train.bounds.methods import method_named
from popqorn_train.cli import main
from popqorn_train.evaluation.dataset import Source
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.ray_worker import DEATHS, Attempts, Job, Worker
from popqorn_train.evaluation.sample_rows import Status
from popqorn_train.evaluation.subject import Subject
from tests import subjects

pytest.importorskip("ray")
from popqorn_train.evaluation.ray_rows import left_of
from popqorn_train.evaluation.ray_table import rows_of, table_of

ROOT = Path(__file__).resolve().parents[2]
QUESTION = Examination(LpBall(0.0), method_named("ibp"), None, 1e-2, "float64", attack=False)


class Here(Worker):
    """A worker in this process, whose attempts are not remote."""

    def _tell(self, method, *given):
        return getattr(self._attempts, method)(*given)


def job(data="pair", **changes):
    subject = Subject("tests.subjects:net", Source(f"tests.subjects:{data}", batch_size=5))
    model = subject.opened_model()
    loader = subject.opened_data(model)
    identity = subject.identity(model, loader, 0)
    return Job(subject, QUESTION, {**identity, **changes}, str(Path.cwd()))


@pytest.fixture(scope="module")
def alone():
    return certify_loader(subjects.net(), subjects.loader(), method="ibp", progress=False)


@pytest.mark.parametrize("data", ["pair", "generator"])
def test_a_worker_finds_the_rows_of_one_process(alone, data):
    asked = job(data)
    worker = Here(asked, Attempts(), 1)
    items = left_of(asked, known={0, 1, 2, 3, 4, 6})
    assert items == [{"block": 1, "left": [5, 7, 8, 9]}, {"block": 2, "left": [10, 11]}]
    assert worker.rows(2, [10, 11]) == alone[10:]
    assert worker.rows(0, range(5)) == alone[:5]  # again from the start
    rows = worker.rows(1, [5, 7, 8, 9])
    assert [row.index for row in rows] == [5, 7, 8, 9]
    assert [row.status for row in rows] == [alone[at].status for at in (5, 7, 8, 9)]
    assert rows_of(table_of(alone)) == alone


def test_shares_of_a_box_stay_shares_on_their_way_through_tables():
    box = Box([-5.0, -6.0, -5.0], 5.0, features=[True, False, True])
    asked = job()
    asked = replace(asked, question=replace(QUESTION, ball=box))
    options = {"box": box, "method": "ibp", "progress": False}
    expected = certify_loader(subjects.net(), subjects.loader(), **options)
    found = Here(asked, Attempts(), 1).rows(0, range(5))
    assert rows_of(table_of(found)) == found == expected[:5]
    assert {row.measure for row in found} == {"share"}
    with pytest.raises(ValueError, match="one size for all batches"):
        replace(asked, question=replace(QUESTION, ball=Box(torch.zeros(5, 4, 3), 1.0)))


def test_a_batch_whose_worker_died_is_done_again_sample_by_sample(alone):
    attempts, asked = Attempts(), job()
    attempts.begin(("batch", 1))
    rows = Here(asked, attempts, 1).rows(1, range(5, 10))
    assert [row.status for row in rows] == [row.status for row in alone[5:10]]
    radii, others = ([row.radius for row in found] for found in (rows, alone[5:10]))
    assert radii == pytest.approx(others, rel=1e-2)
    kept = attempts.begin_sample(7)[1]
    assert kept == rows[2]


def test_a_sample_that_kills_alone_is_an_error_and_others_are_not_done_twice(alone):
    examined = []

    class Deadly(Here):
        def _examined(self, block, left):
            examined.append(list(left))
            if 7 in left:
                raise SystemExit  # what a kill leaves behind
            return super()._examined(block, left)

    attempts, asked = Attempts(), job()
    for _ in range(2):
        with pytest.raises(SystemExit):
            Deadly(asked, attempts, 1).rows(1, range(5, 10))
    rows = Deadly(asked, attempts, 1).rows(1, range(5, 10))
    assert examined == [[5, 6, 7, 8, 9], [5], [6], [7], [8], [9]]
    assert rows[2].status == Status.ERROR
    assert "workers died with it 2 times" in rows[2].error
    assert rows[2].label == alone[7].label
    assert all(row.answered for row in rows if row.index != 7)


def test_a_batch_that_cannot_even_be_read_is_given_up():
    attempts = Attempts()
    for _ in range(DEATHS):
        attempts.begin(("batch", 1))
    rows = Here(job(), attempts, 1).rows(1, range(5, 10))
    assert [row.index for row in rows] == [5, 6, 7, 8, 9]
    assert {row.status for row in rows} == {Status.ERROR}


@pytest.mark.parametrize("name", ["weights", "first_samples"])
def test_a_worker_with_other_files_refuses(name):
    worker = Here(job(**{name: "abc"}), Attempts(), 1)
    with pytest.raises(ValueError, match=f"a worker found other {name} than the command"):
        worker(table_of([]))


def test_workers_that_die_while_they_load_are_not_started_for_ever():
    attempts = Attempts()
    for _ in range(6):
        attempts.begin("worker")
    with pytest.raises(ValueError, match="workers die while they load model and data"):
        Here(job(), attempts, 2)(table_of([]))


def test_time_that_is_up_leaves_samples_not_attempted():
    late = job()
    late = Job(late.subject, late.question, late.identity, late.folder, until=time.time() - 1)
    rows = Here(late, Attempts(), 1).rows(2, [10, 11])
    assert [row.status for row in rows] == [Status.NOT_ATTEMPTED] * 2


def test_an_error_of_every_sample_of_a_batch_is_a_row_each():
    class Broken(Examination):
        def rows(self, model, picked, start, decided):
            raise FloatingPointError("the bounds fell over")

    asked = job()
    broken = Job(asked.subject, Broken(**vars(QUESTION)), asked.identity, asked.folder)
    rows = Here(broken, Attempts(), 1).rows(2, [10, 11])
    assert [row.error for row in rows] == ["FloatingPointError: the bounds fell over"] * 2


def certify(folder, *options, data="tests.subjects:pair"):
    chosen = ["certify", "tests.subjects:net", "--data", data, "--method", "ibp", "--fragile", "0"]
    return [*chosen, "--batch-size", "2", "--folder", str(folder), *options]


REFUSED = {
    "workers alone": (["--workers", "2"], "`--workers` needs --engine ray"),
    "cpus alone": (["--num-cpus", "1"], "`--num-cpus` needs --engine ray"),
    "shard too": (["--engine", "ray", "--shard", "1/2"], "leave one out"),
    "no answer": (["--engine", "ray", "--address", "127.0.0.1:1"], "127.0.0.1:1 does not answer"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_spread_is_refused_in_one_sentence(tmp_path, capsys, options, message):
    assert main(certify(tmp_path, *options)) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_an_engine_that_is_not_installed_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(certify(tmp_path, "--engine", "ray")) == 1
    assert 'pip install "popqorn-train[ray]"' in capsys.readouterr().err
    assert main(certify(tmp_path, "--resume")) == 0  # nothing is lost


# What follows starts Ray.


def marked():
    """Twelve samples; a worker says which process it is, and takes its time for every batch."""
    _in_workers(lambda rows: _slowly)
    return DataLoader(TensorDataset(*subjects.pair()), 2)


def poisoned():
    """The same, and sample 7 kills its worker."""
    _in_workers(lambda rows: _deadly)
    return DataLoader(TensorDataset(*subjects.pair()), 2)


_RADII = Examination.rows


def _in_workers(replacement):
    import ray

    if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
        Examination.rows = replacement(Examination.rows)


def _slowly(self, model, picked, start, decided):
    Path(os.environ["POPQORN_TEST_PIDS"], str(os.getpid())).touch()
    time.sleep(1.0)
    return _RADII(self, model, picked, start, decided)


def _deadly(self, model, picked, start, decided):
    if 7 in picked.positions.tolist():
        os.kill(os.getpid(), signal.SIGKILL)
    return _RADII(self, model, picked, start, decided)


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    (tmp_path / "pids").mkdir()
    environment = {"POPQORN_TEST_PIDS": str(tmp_path / "pids"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **environment, "PYTHONPATH": str(ROOT)}


def start(folder, environment, data, *options):
    given = certify(folder, "--engine", "ray", "--workers", "2", *options, data=data)
    command = [sys.executable, "-m", "popqorn_train.cli", *given]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def wait_for(rows, run, least=2):
    for _ in range(3000):
        if run.poll() is not None or (
            rows.exists() and len(rows.read_text().splitlines()) >= least
        ):
            return
        time.sleep(0.05)


def lines(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def agree(found, alone):
    assert [line["index"] for line in found] == list(range(12))  # nothing lost, nothing doubled
    assert [line["status"] for line in found] == [row.status for row in alone]
    radii = [line["radius"] for line in found]
    assert radii == pytest.approx([row.radius for row in alone], rel=1e-2)


@pytest.mark.slow
def test_a_worker_is_killed_and_nothing_is_lost_or_doubled(tmp_path, alone, surroundings):
    run = start(tmp_path / "a", surroundings, "tests.evaluation.test_ray:marked")
    wait_for(tmp_path / "a" / "samples.jsonl", run)
    pids = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    os.kill(pids[0], signal.SIGKILL)
    out, err = run.communicate(timeout=500)
    assert run.returncode == 0, err
    assert "12 samples of" in out
    assert len(list((tmp_path / "pids").iterdir())) > len(pids)  # another took over
    agree(lines(tmp_path / "a"), alone)


@pytest.mark.slow
def test_the_driver_is_killed_and_the_run_goes_on(tmp_path, alone, surroundings):
    data = "tests.evaluation.test_ray:marked"
    run = start(tmp_path / "a", surroundings, data)
    wait_for(tmp_path / "a" / "samples.jsonl", run)
    run.kill()
    run.wait()
    run.stdout.close()
    run.stderr.close()
    kept = lines(tmp_path / "a")
    assert 2 <= len(kept) < 12
    run = start(tmp_path / "a", surroundings, data, "--resume")
    _, err = run.communicate(timeout=500)
    assert run.returncode == 0, err
    agree(lines(tmp_path / "a"), alone)
    assert [line for line in lines(tmp_path / "a") if line in kept] == sorted(
        kept, key=lambda line: line["index"]
    )


@pytest.mark.slow
def test_a_sample_that_kills_its_worker_costs_itself_alone(tmp_path, alone, surroundings):
    run = start(tmp_path / "a", surroundings, "tests.evaluation.test_ray:poisoned")
    out, err = run.communicate(timeout=500)
    assert run.returncode == 0, err
    assert "1 error" in out
    found = lines(tmp_path / "a")
    assert "workers died with it 2 times" in found[7]["error"]
    assert [line["index"] for line in found] == list(range(12))
    assert [line["status"] for line in found if line["index"] != 7] == [
        row.status for row in alone if row.index != 7
    ]


@pytest.mark.slow
def test_rows_are_a_data_set_of_ray_equal_to_those_of_one_process(alone):
    import ray

    try:
        dataset = rows_on_ray(
            "tests.subjects:net", "tests.subjects:loader", workers=2, method="ibp", known=[3]
        )
        table = dataset.to_pandas().sort_values("index")
        assert table["index"].tolist() == [at for at in range(12) if at != 3]
        expected = torch.tensor([row.radius for row in alone if row.index != 3]).tolist()
        assert table["radius"].tolist() == pytest.approx(expected, rel=1e-5)
        same = [row.index for row in alone if row.index > 4]
        radii = dict(zip(table["index"], table["radius"], strict=True))
        assert [radii[at] for at in same] == [alone[at].radius for at in same]  # of whole batches
    finally:
        ray.shutdown()
