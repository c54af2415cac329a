"""Rows of samples show themselves and become a table."""

import sys

import pytest

from popqorn_train import SampleRow, Status
from popqorn_train.evaluation.certification import Certification
from popqorn_train.evaluation.sample_list import SampleRows

ROWS = SampleRows(
    [
        SampleRow(0, 1, Status.CERTIFIED, 1, 0.25, empirical=0.5),
        SampleRow(1, 2, Status.NOT_CERTIFIED, 0, 0.0, empirical=0.0),
        SampleRow(3, None, Status.ERROR, error="<b>NaN</b>"),
    ]
)


def test_rows_are_a_list_and_parts_of_them_too():
    assert isinstance(ROWS, list)
    assert isinstance(ROWS[1:], SampleRows)
    assert [row.index for row in ROWS[1:]] == [1, 3]
    assert ROWS[-1].index == 3


def test_their_text_counts_what_became_of_them():
    text = "<SampleRows: 3 samples, 1 certified, 1 not certified, 1 error, median radius 0>"
    assert repr(ROWS) == text
    assert repr(SampleRows()) == "<SampleRows: 0 samples>"


def test_a_row_shows_what_was_worked_out():
    text = (
        "SampleRow(index=0, label=1, status='certified', prediction=1, radius=0.25, empirical=0.5)"
    )
    assert repr(ROWS[0]) == text


def test_a_certification_shows_its_epoch_and_its_rows():
    found = Certification(2, 60, tuple(ROWS), settings={"p": "inf"})
    assert repr(found).startswith("<Certification: fit, epoch 2, step 60, 3 samples, 1 certified")
    assert len(repr(found)) < 120
    assert "<th>radius</th>" in found._repr_html_()


def test_their_table_is_text_and_leaves_out_empty_columns():
    page = ROWS._repr_html_()
    assert "&lt;b&gt;NaN&lt;/b&gt;" in page
    assert "<th>radius</th>" in page
    assert "<th>margin</th>" not in page
    assert page.count("<tr>") == 4
    many = SampleRows(SampleRow(at, 0, Status.NOT_ATTEMPTED) for at in range(50))
    assert many._repr_html_().count("<tr>") == 21
    assert "the first 20" in many._repr_html_()


def test_pandas_has_one_row_a_sample():
    table = pytest.importorskip("pandas") and ROWS.to_pandas()
    assert table.index.tolist() == [0, 1, 3]
    assert table.loc[0, "radius"] == 0.25
    assert table["status"].tolist() == ["certified", "not certified", "error"]
    assert table["radius"].isna().tolist() == [False, False, True]
    assert table["label"].isna().tolist() == [False, False, True]
    assert table["radius"].dtype == "float64"


def test_without_pandas_one_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="`to_pandas` needs pandas: pip install pandas"):
        ROWS.to_pandas()
