"""Rows as tables of Arrow, in which Ray moves them."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from popqorn_train.evaluation.sample_rows import SampleRow, Status


def _schema() -> Any:
    """Of the tables that workers return."""
    import pyarrow

    kinds = {"index": pyarrow.int64(), "label": pyarrow.int64(), "status": pyarrow.string()}
    kinds |= {"prediction": pyarrow.int64(), "capped": pyarrow.bool_(), "error": pyarrow.string()}
    kinds |= {"evaluations": pyarrow.int64(), "measure": pyarrow.string()}
    return pyarrow.schema(
        [(f.name, kinds.get(f.name, pyarrow.float64())) for f in fields(SampleRow)]
    )


def table_of(rows: Sequence[SampleRow]) -> Any:
    """Rows as a table of Arrow."""
    import pyarrow

    columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields(SampleRow)}
    columns["status"] = [str(status) for status in columns["status"]]
    return pyarrow.table(columns, schema=_schema())


def rows_of(table: Any) -> list[SampleRow]:
    """What ``table_of`` made a table of."""
    plain = [{**row, "status": Status(row["status"])} for row in table.to_pylist()]
    return [SampleRow(**row) for row in plain]
