"""The table of mutants fits the repository, and the runner tells the living from the dead."""

import pytest

from tests.mutants.run import ROOT, TABLE, Mutant, Outcome, Runner, main, misfits, read, share

TOY = """
[[mutant]]
id = "dies"
file = "toy.py"
before = "2 * x"
after = "3 * x"
tests = ["test_toy.py::test_even", "test_toy.py::test_double"]

[[mutant]]
id = "lives"
file = "toy.py"
before = "x - 1"
after = "x - 2"
tests = ["test_toy.py"]

[[mutant]]
id = "the same"
file = "toy.py"
before = "x - 1"
after = "x + -1"
equivalent = "Both are one less."
"""
CODE = """
def double(x):
    return 2 * x


def less(x):
    return x - 1
"""
TESTS = """
import toy


def test_even():
    assert toy.double(0) == 0


def test_double():
    assert toy.double(2) == 4
"""


@pytest.fixture
def toy(tmp_path):
    """A repository of one module, and its table."""
    root = tmp_path / "toy"
    root.mkdir()
    for name, text in (("toy.py", CODE), ("test_toy.py", TESTS), ("table.toml", TOY)):
        (root / name).write_text(text)
    return root


def arguments(root, *more):
    return ["--root", str(root), "--file", str(root / "table.toml"), *more]


def test_every_text_is_there_once_and_every_test_exists():
    mutants = read(TABLE)
    assert misfits(mutants, ROOT) == []
    assert len(mutants) > 57


def test_a_mutant_dies_where_a_test_fails_and_survives_where_none_does(toy, capsys):
    assert main(arguments(toy)) == 1  # one of two is too few
    said = capsys.readouterr().out
    assert "dies: test_toy.py::test_double" in said
    assert "survived" in said
    assert "50.0% of the mutants that are not equivalent died" in said
    assert (toy / "toy.py").read_text() == CODE
    assert main(arguments(toy, "--only", "the same")) == 0


def test_tests_that_fail_without_a_mutant_are_told_first(toy, capsys):
    (toy / "toy.py").write_text(CODE.replace("return 2 * x", "return 2 * x + 1"))
    assert main(arguments(toy)) == 1
    assert "Without a mutant: test_toy.py::test_even" in capsys.readouterr().out


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("before", "after", "limit", "verdict"),
    [
        ("def double(x):", "def double(x)", 60, "error"),
        ("return 2 * x", "while True:\n        pass", 2, "timeout"),
    ],
)
def test_a_run_that_never_ends_or_fails_otherwise_is_no_death(toy, before, after, limit, verdict):
    runner = Runner(toy, toy.parent / "copies", limit=limit)
    mutant = Mutant("some", "toy.py", before, after, ("test_toy.py",))
    assert [outcome.verdict for outcome in runner.outcomes([mutant])] == [verdict]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"before": "4 * x"}, "`before` is 0 times in toy.py"),
        ({"before": "x"}, "`before` is 4 times in toy.py"),
        ({"file": "other.py"}, "`before` is 0 times in other.py"),
        ({"after": "2 * x"}, "`after` changes nothing"),
        ({"tests": ("test_toy.py::test_three",)}, "no test test_toy.py::test_three"),
        ({"tests": ("test_other.py",)}, "no test test_other.py"),
        ({"tests": ()}, "either `tests` or the argument `equivalent`"),
        ({"equivalent": "Both are."}, "either `tests` or the argument `equivalent`"),
    ],
)
def test_what_does_not_fit_is_said(toy, change, message):
    row = read(toy / "table.toml")[0].__dict__ | change
    assert [message in said for said in misfits([Mutant(**row)], toy)] == [True]


def test_an_id_that_is_there_twice_is_said(toy):
    first = read(toy / "table.toml")[0]
    assert misfits([first, first], toy) == ["dies: the id is there 2 times."]


def test_equivalent_mutants_do_not_count():
    verdicts = ["killed"] * 19 + ["timeout", "equivalent"]
    assert share([Outcome(str(k), v, 0.0, "") for k, v in enumerate(verdicts)]) == 0.95
