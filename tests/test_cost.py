"""The suite of what certificates cost: what is measured, what is predicted, what has grown."""

import importlib.util
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

PATH = Path(__file__).parent / "benchmarks" / "cost.py"


@pytest.fixture(scope="module")
def cost():
    spec = importlib.util.spec_from_file_location("cost_suite", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(cost, folder, *arguments):
    small = ["--cells", "tanh RNN", "--methods", "ibp", "--frames", "2,4", "--units", "3,48"]
    # Of however slow a machine, all is measured.
    small += ["--batches", "1", "--most", "1e9", "--out", str(folder / "new.json")]
    return cost.main([*small, *arguments])


@pytest.fixture(scope="module")
def measured(cost, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cost")
    assert run(cost, folder) == 0
    return folder / "new.json"


def test_every_case_has_its_numbers(cost, measured):
    cases = [cost.Case(**plain) for plain in json.loads(measured.read_text())["cases"]]
    assert len(cases) == 4
    assert all(case.measured and case.radius is not None for case in cases)
    assert all(case.bytes > 0 and case.products > 0 and case.seconds > 0 for case in cases)
    by_size = {(case.frames, case.units, case.batch): case for case in cases}
    assert by_size[4, 3, 1].operations > by_size[2, 3, 1].operations
    assert by_size[4, 48, 1].bytes > 2 * by_size[4, 3, 1].bytes


def test_a_power_law_is_found_and_what_does_not_vary_is_as_usual(cost):
    sizes = [(t, 8, b) for t in (2, 4, 8, 16) for b in (1, 3, 9)]
    cases = [
        cost.Case("LSTM", "ibp", t, h, b, 0.01 * t**1.5 * b**0.5, None, 1, 1, 1e7 * t**1.5 * b**0.5)
        for t, h, b in sizes
    ]
    exponents = cost.power_law(cases, "seconds")[1:].tolist()
    assert exponents == pytest.approx([1.5, 2.0, 0.5], abs=0.05)
    assert cost.expected(cases, "seconds", (32, 8, 27)) == pytest.approx(
        0.01 * 32**1.5 * 27**0.5, rel=0.1
    )


def test_what_would_take_too_long_is_predicted_and_marked(cost, capsys, monkeypatch):
    measured = cost.measured
    monkeypatch.setattr(cost, "measured", lambda *case: replace(measured(*case), seconds=0.01))
    grid = [(2, 3, 1), (3, 3, 1), (400, 512, 64)]
    found = cost.costs("tanh RNN", "ibp", grid, most=0.1)
    assert [case.measured for case in found] == [True, True, False]
    assert found[2].seconds > 0.1
    fastest = max(case.products / case.seconds for case in found[:2])
    assert found[2].products / found[2].seconds <= 1.001 * fastest
    assert cost.line(found[2]).startswith("~")
    assert not cost.line(found[0]).startswith("~")


@pytest.mark.slow
def test_more_operations_than_before_are_listed(cost, measured, tmp_path, capsys):
    before = json.loads(measured.read_text())
    old = tmp_path / "old.json"
    old.write_text(measured.read_text())
    assert run(cost, tmp_path, "--compare", str(old)) == 0
    fewer = cost.Case(**before["cases"][3])
    before["cases"][3] = asdict(replace(fewer, operations=fewer.operations / 1.2))
    old.write_text(json.dumps(before))
    assert run(cost, tmp_path, "--compare", str(old)) == 1
    assert f"MORE OPERATIONS: {fewer.name}" in capsys.readouterr().out
    old.write_text(json.dumps({**before, "compiled": not before["compiled"]}))
    with pytest.raises(ValueError, match="one run had compiled loops, the other none"):
        cost.grown([], json.loads(old.read_text()))
