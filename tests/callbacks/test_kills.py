"""Trainings that are killed and resumed, and trainings with faults; see kills.py."""

import subprocess
import sys

import pytest

from tests.callbacks.faults import DISTRIBUTED, FAULTS
from tests.callbacks.kills import fail, kill, run


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True])
def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, background):
    whole = run(tmp_path / "whole", background=background)
    assert whole.status == 0
    for place, share in enumerate((0.45, 0.8)):
        after = whole.used * share
        folder = tmp_path / str(place)
        assert kill(folder, tmp_path / "whole", after, background=background)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Trainings that nobody disturbs, by the number of their processes."""
    folders = {count: tmp_path_factory.mktemp("whole") for count in (1, 2)}
    assert all(run(folder, processes=count).status == 0 for count, folder in folders.items())
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_leaves_training_alone_or_stops_it(tmp_path, whole, fault):
    fail(tmp_path, whole[2 if fault in DISTRIBUTED else 1], fault, seed=0)


@pytest.mark.slow
def test_fifty_moments_and_twenty_runs_of_every_fault():
    subprocess.run([sys.executable, "-m", "tests.callbacks.kills"], check=True)
