"""The rows of many samples as a list that shows itself, and as a table of pandas."""

from dataclasses import fields
from typing import Any, SupportsIndex, overload

from popqorn_train.display import SHOWN, html_table
from popqorn_train.evaluation.sample_rows import SampleRow, count_statuses, measure_of_rows

_COLUMNS = tuple(column.name for column in fields(SampleRow))
_FLOATS = ("radius", "empirical", "margin", "rate", "bend")


class SampleRows(list[SampleRow]):
    """A list of ``SampleRow``."""

    @overload
    def __getitem__(self, at: SupportsIndex) -> SampleRow: ...

    @overload
    def __getitem__(self, at: slice) -> "SampleRows": ...

    def __getitem__(self, at: SupportsIndex | slice) -> "SampleRow | SampleRows":
        """One row, or some of them as such a list."""
        return SampleRows(super().__getitem__(at)) if isinstance(at, slice) else list(self)[at]

    def __repr__(self) -> str:
        counts = [f"{count} {status}" for status, count in count_statuses(self).items() if count]
        radii = sorted(row.radius for row in self if row.answered and row.radius is not None)
        parts = [f"{len(self)} samples", *counts]
        if radii:
            parts.append(f"median {measure_of_rows(self).name} {radii[(len(radii) - 1) // 2]:.4g}")
        return f"<SampleRows: {', '.join(parts)}>"

    def _repr_html_(self) -> str:
        shown = [name for name in _COLUMNS if any(_holds(row, name) for row in self)]
        table = [[getattr(row, name) for name in shown] for row in self[:SHOWN]]
        more = f", the first {SHOWN}" if len(self) > SHOWN else ""
        return html_table(shown, table, repr(self).strip("<>") + more)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with one row a sample, by index.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("`to_pandas` needs pandas: pip install pandas.") from error
        columns = {name: [getattr(row, name) for row in self] for name in _COLUMNS}
        columns["status"] = [str(row.status) for row in self]
        kinds = {"label": "Int64", "prediction": "Int64", **dict.fromkeys(_FLOATS, "float64")}
        return pandas.DataFrame(columns).astype(kinds).set_index("index")


def _holds(row: SampleRow, name: str) -> bool:
    """Whether a column says something of a sample."""
    value = getattr(row, name)
    return name in ("index", "status") or value not in (None, "", False, "radius")
