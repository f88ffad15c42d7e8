"""Items from the rows of Parquet files."""

from __future__ import annotations

import sys
import uuid
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.errors import SourceError
from prefect_dispatch.models.item import Item
from prefect_dispatch.sources.tabular import Parquet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic import JsonValue


def parquet(root: Path, columns: Mapping[str, Any], **fields: str) -> list[Item]:
    """Return the items of a Parquet file."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(dict(columns)), root / "a.parquet")
    return list(Parquet(parquet="a.parquet", **fields).stream(root))


def test_parquet_rows_are_items(tmp_path: Path) -> None:
    """Rows of all batches, in order, with key and priority from columns."""
    numbers = list(range(3000))
    items = parquet(tmp_path, {"id": numbers, "p": [n % 2 for n in numbers]}, key="id", priority="p")
    assert items == [Item(key=str(n), value={"id": n, "p": n % 2}, priority=n % 2) for n in numbers]


IDENTITY = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        pytest.param("{{ é }}", "{{ é }}", id="text"),
        pytest.param(2**40, 2**40, id="integer"),
        pytest.param(1.5, 1.5, id="float"),
        pytest.param(True, True, id="boolean"),
        pytest.param(None, None, id="null"),
        pytest.param(Decimal("1.10"), "1.10", id="decimal"),
        pytest.param(date(2026, 1, 2), "2026-01-02", id="date"),
        pytest.param(time(3, 4, 5), "03:04:05", id="time"),
        pytest.param(datetime(2026, 1, 2, 3), "2026-01-02T03:00:00", id="local-time"),  # noqa: DTZ001 -- the case
        pytest.param(datetime(2026, 1, 2, tzinfo=timezone.utc), "2026-01-02T00:00:00+00:00", id="utc"),
        pytest.param([Decimal("1.0"), None], ["1.0", None], id="list"),
        pytest.param({"at": date(2026, 1, 2), "n": [1]}, {"at": "2026-01-02", "n": [1]}, id="struct"),
    ],
)
def test_parquet_values_become_json(value: object, plain: JsonValue, tmp_path: Path) -> None:
    """Dates and times as ISO 8601, decimals as text, nested ones too."""
    assert parquet(tmp_path, {"v": [value], "w": [1]})[0].value == {"v": plain, "w": 1}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        pytest.param(b"ab", "bytes is neither text, number, date nor time", id="bytes"),
        pytest.param([b"ab"], "bytes is neither", id="bytes-in-a-list"),
        pytest.param(timedelta(1), "timedelta is neither", id="duration"),
        pytest.param(float("nan"), "nan is no number in JSON", id="nan"),
        pytest.param({"x": float("inf")}, "inf is no number in JSON", id="infinity-in-a-struct"),
    ],
)
def test_parquet_values_without_a_form_in_json_are_named(value: object, why: str, tmp_path: Path) -> None:
    """The row and the column are told."""
    with pytest.raises(SourceError, match=rf"a.parquet', row 2: column 'v' has no form in JSON: {why}"):
        parquet(tmp_path, {"ok": [1, 2], "v": [None, value]})


def test_parquet_uuids_become_text(tmp_path: Path) -> None:
    """They are a type of their own in newer files."""
    pa = pytest.importorskip("pyarrow", minversion="19")
    column = pa.array([IDENTITY.bytes], pa.uuid())
    assert parquet(tmp_path, {"v": column})[0].value == {"v": str(IDENTITY)}


def test_parquet_with_parts_of_microseconds_is_refused(tmp_path: Path) -> None:
    """Python's times would lose the nanoseconds."""
    pa = pytest.importorskip("pyarrow")
    with pytest.raises(SourceError, match=r"a.parquet' can't be read after row 0: Nanosecond"):
        parquet(tmp_path, {"v": pa.array([1], pa.timestamp("ns"))})


def test_parquet_columns_are_checked(tmp_path: Path) -> None:
    """As those of a CSV file are."""
    with pytest.raises(SourceError, match="no column 'idd'; did you mean 'id'"):
        parquet(tmp_path, {"id": [1]}, key="idd")


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    """A broken file is an error of the source, not a stack trace of pyarrow."""
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_text("a,b")
    with pytest.raises(SourceError, match=r"Parquet file .*a.parquet' can't be read after row 0: "):
        list(Parquet(parquet="a.parquet").stream(tmp_path))


def test_without_pyarrow_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra of this package."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SourceError, match=r"pip install 'prefect-dispatch\[parquet\]'"):
        list(Parquet(parquet="a.parquet").stream(tmp_path))
