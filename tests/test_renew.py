"""The blocks of results in the pages: the command that renews them, and the same everywhere."""

from collections import defaultdict

import pytest

from popqorn_train.recipes import digits
from tests import renew

PAGE = "a\n<!-- printed by `make one` -->\n```text\n1 2\n```\nb\n```text\nstays\n```\n"


def test_a_block_is_replaced_and_the_rest_stays():
    new = renew.renewed(PAGE, "one", "3 4\n5 6\n\n")
    assert new == PAGE.replace("1 2", "3 4\n5 6")
    assert renew.renewed(PAGE, "two", "7") == PAGE
    assert renew.blocks(new) == {"one": "3 4\n5 6\n"}


def test_pages_that_show_the_same_command_show_the_same():
    shown = defaultdict(set)
    for page in renew.PAGES:
        for target, text in renew.blocks(page.read_text()).items():
            shown[target].add(text)
    assert "demo" in shown
    assert all(len(texts) == 1 for texts in shown.values())


def test_the_table_of_the_demo_has_the_head_that_the_code_prints():
    [line] = [line for line in demo() if line.startswith("training")]
    assert line == digits.HEAD


@pytest.mark.slow
def test_the_demo_prints_what_the_readme_shows(tmp_path):
    digits.run(digits.Config(folder=tmp_path), enable_progress_bar=False)
    rows = [numbers(line) for line in (tmp_path / "table.txt").read_text().splitlines()[-2:]]
    for row, known in zip(rows, [numbers(line) for line in demo()[-2:]], strict=True):
        assert row[:-1] == pytest.approx(known[:-1], rel=0.1, abs=3)  # but for the seconds


def demo():
    return renew.blocks(renew.PAGES[0].read_text())["demo"].splitlines()


def numbers(line):
    return [float(cell) for cell in line.split()[1:]]


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        renew.main(["dmo"])
    assert "no page shows what make dmo prints" in capsys.readouterr().err


def test_what_is_printed_goes_into_the_pages(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    monkeypatch.setattr(renew, "ROOT", tmp_path)
    monkeypatch.setattr(renew, "PAGES", (page,))
    monkeypatch.setattr(renew, "printed_by", lambda target: "new")
    assert renew.main([]) == 0
    assert "```text\nnew\n```" in page.read_text()
    assert capsys.readouterr().out == "page.md: make one\n"
