"""DataFrames in and out: every row is an item, every value is kept or refused by name, and outcomes join back."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.errors import JobError, SourceError
from prefect_dispatch.models.ledger import LedgerRow, Ref
from prefect_dispatch.models.outcome import Attempt, Failure, Outcome, Usage
from prefect_dispatch.models.report import Report
from prefect_dispatch.reporting.tables import outcomes_frame
from prefect_dispatch.sources import source
from prefect_dispatch.sources.dataframe import items_from, to_narwhals
from prefect_dispatch.sources.inline import to_json_value

if TYPE_CHECKING:
    from collections.abc import Callable

BOTH = pytest.mark.parametrize(
    "make", [pytest.param(pd.DataFrame, id="pandas"), pytest.param(pl.DataFrame, id="polars")]
)
UTC = timezone.utc


class Colour(str, Enum):
    """An enumeration whose text is not its value."""

    RED = "red"


def one(value: object, make: Callable[[Any], Any] = pd.DataFrame) -> object:
    """Return what becomes of a value."""
    (item,) = items_from(make({"id": ["a"], "v": [value]}), key="id")
    assert isinstance(item.value, dict)
    return item.value["v"]


@BOTH
def test_each_row_is_an_item(make: Callable[[Any], Any]) -> None:
    """The whole row is the value, the key a text or a whole number, the priority a column's."""
    items = items_from(make({"id": [10, 9], "text": ["x", None], "rank": [0, 2]}), key="id", priority="rank")
    assert [(item.key, item.value, item.priority) for item in items] == [
        ("10", {"id": 10, "text": "x", "rank": 0}, 0),
        ("9", {"id": 9, "text": None, "rank": 2}, 2),
    ]
    assert items_from(make({"id": []}), key="id") == []


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        pytest.param(float("nan"), None, id="nan"),
        pytest.param(pd.NaT, None, id="nat"),
        pytest.param(pd.NA, None, id="na"),
        pytest.param(Decimal("1.10"), "1.10", id="decimal"),
        pytest.param(datetime(2026, 1, 2, 3, tzinfo=UTC), "2026-01-02T03:00:00+00:00", id="datetime"),
        pytest.param(pd.Timestamp("2026-01-02 03:00:00.000000001"), "2026-01-02T03:00:00.000000001", id="nanosecond"),
        pytest.param(date(2026, 1, 2), "2026-01-02", id="date"),
        pytest.param(np.int64(2**60), 2**60, id="int64"),
        pytest.param(np.float32(0.5), 0.5, id="float32"),
        pytest.param(np.bool_(True), True, id="bool"),  # noqa: FBT003 -- the case
        pytest.param([np.int64(1), pd.NaT, np.bool_(False)], [1, None, False], id="nested"),  # noqa: FBT003 -- the case
        pytest.param({"a": (np.float64(0.5),)}, {"a": [0.5]}, id="object"),
        pytest.param(np.array([[1, 2]]), [[1, 2]], id="array"),
        pytest.param([np.datetime64("2026-01-02")], ["2026-01-02"], id="datetime64"),
        pytest.param(UUID(int=1), "00000000-0000-0000-0000-000000000001", id="uuid"),
        pytest.param(Colour.RED, "red", id="enum"),
    ],
)
def test_values_of_pandas_become_json(value: object, plain: object) -> None:
    """Nothing is lost; what is missing is null."""
    assert one(value) == plain


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        pytest.param(None, None, id="null"),
        pytest.param(Decimal("1.10"), "1.10", id="decimal"),
        pytest.param(datetime(2026, 1, 2, 3, tzinfo=UTC), "2026-01-02T03:00:00+00:00", id="datetime"),
        pytest.param([{"a": 1}, {"a": None}], [{"a": 1}, {"a": None}], id="nested"),
    ],
)
def test_values_of_polars_become_json(value: object, plain: object) -> None:
    """The same, with types of its own."""
    assert one(value, pl.DataFrame) == plain


class Loop(list[object]):
    """A list that holds itself."""

    def __init__(self) -> None:
        """Close the circle."""
        super().__init__([self])


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        pytest.param(pd.DataFrame({"id": ["a"], "v": [float("inf")]}), "'v', row 1: inf is no number", id="inf"),
        pytest.param(
            pd.DataFrame({"id": ["a"], "v": [Decimal("-Infinity")]}), "'v', row 1: .*is no number", id="inf-decimal"
        ),
        pytest.param(pl.DataFrame({"id": ["a"], "v": [float("nan")]}), "'v', row 1: nan is no number", id="polars-nan"),
        pytest.param(pd.DataFrame({"id": ["a"], "v": [[float("nan")]]}), "'v', row 1: nan is no number", id="nested"),
        pytest.param(pd.DataFrame({"id": ["a"], "v": [b"x"]}), "'v', row 1: bytes is neither", id="bytes"),
        pytest.param(
            pd.DataFrame({"id": ["a"], "v": [timedelta(1)]}), "'v', row 1: Timedelta is neither", id="duration"
        ),
        pytest.param(pl.DataFrame({"id": ["a"], "v": [timedelta(1)]}), "'v', row 1: timedelta is neither", id="polars"),
        pytest.param(
            pd.DataFrame({"id": ["a"], "v": [[np.timedelta64(1, "ns")]]}), "timedelta64 is neither", id="timedelta64"
        ),
        pytest.param(pd.DataFrame({"id": ["a"], "v": [[np.longdouble(1)]]}), "longdouble is neither", id="longdouble"),
        pytest.param(pd.DataFrame({"id": ["a"], "v": [1j]}), "complex.* is neither", id="complex"),
        pytest.param(pd.DataFrame({"id": ["a"], "v": [{1: 2}]}), "the key 1, and in JSON keys are text", id="key"),
        pytest.param(pd.DataFrame({"id": ["a"], "v": [Loop()]}), "'v', row 1: maximum recursion", id="recursion"),
        pytest.param(
            pd.DataFrame({"id": ["a"], "v": ["\ud800"]}, dtype=object), "row 1: half of a surrogate", id="half"
        ),
        pytest.param(
            pl.DataFrame({"id": ["a", "b"], "v": pl.Series([1000, 1], dtype=pl.Datetime("ns"))}),
            "'v', row 2: nanoseconds would be lost",
            id="nanoseconds",
        ),
        pytest.param(
            pl.DataFrame({"id": ["a"], "v": pl.Series([1], dtype=pl.Time)}), "nanoseconds would be lost", id="time"
        ),
        pytest.param(
            pl.DataFrame(
                {"id": ["a"], "v": [[{"t": None}]]},
                schema_overrides={"v": pl.List(pl.Struct({"t": pl.Datetime("ns")}))},
            ),
            "Column 'v': nanoseconds would be lost",
            id="nested-nanoseconds",
        ),
    ],
)
def test_what_would_be_lost_is_refused(frame: object, why: str) -> None:
    """With the column and the row."""
    with pytest.raises(SourceError, match=why):
        items_from(frame, key="id")


def test_times_with_whole_microseconds_pass() -> None:
    """However fine their type is."""
    frame = pl.DataFrame({"id": ["a", "b"], "v": pl.Series([1000, None], dtype=pl.Datetime("ns"))})
    assert [item.value["v"] for item in items_from(frame, key="id") if isinstance(item.value, dict)] == [
        "1970-01-01T00:00:00.000001",
        None,
    ]
    assert one([datetime(2026, 1, 2)], pl.DataFrame) == ["2026-01-02T00:00:00"]  # noqa: DTZ001 -- the case


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        pytest.param([{"id": 1}], "Not a DataFrame: list; give one of pandas", id="list"),
        pytest.param(pd.Series([1]), "Not a DataFrame: Series", id="series"),
        pytest.param(pd.DataFrame({"idd": [1]}), "has no column 'id'; did you mean 'idd'", id="column"),
        pytest.param(
            pd.DataFrame({"x": [1]}, index=pd.Index([1], name="id")), r"index, not.*reset_index\(\)", id="index"
        ),
        pytest.param(pd.DataFrame([[1, 2]], columns=["id", "id"]), "two columns of one name", id="twice"),
        pytest.param(pd.DataFrame([[1, 2]], columns=["id", 0]), "column 0, whose name is no text", id="name"),
        pytest.param(
            pd.DataFrame({"id": ["a", None, ""]}), "'id' names the items, and is empty in rows 2, 3", id="null"
        ),
        pytest.param(pl.DataFrame({"id": [None] * 9}), "in rows 1, 2, 3, 4, 5 and 4 more", id="nulls"),
        pytest.param(pd.DataFrame({"id": [1.5]}), "row 1: a key is text or a whole number, not '1.5'", id="float"),
        pytest.param(pd.DataFrame({"id": [True]}), "row 1: a key is text or a whole number, not 'True'", id="flag"),
        pytest.param(pd.DataFrame({"id": [1, "1", 2]}), r"unique, and aren't: '1' \(rows 1, 2\); keep", id="equal"),
        pytest.param(pl.DataFrame({"id": [*"abcdefg"] * 2}), r"'e' \(rows 5, 12\) and 2 more; keep", id="many"),
    ],
)
def test_a_frame_without_keys_is_refused(frame: object, why: str) -> None:
    """With the column, the rows and the keys."""
    with pytest.raises(SourceError, match=why):
        items_from(frame, key="id")


def test_a_text_of_another_kind_is_a_text() -> None:
    """NumPy's, or an Enum's."""
    assert to_json_value([np.str_("a")]) == ["a"]


def test_a_key_that_is_no_name_is_refused() -> None:
    """None, say, of a setting that nobody made."""
    with pytest.raises(SourceError, match="no column None"):
        items_from(pd.DataFrame({"id": [1]}), key=cast("Any", None))


@pytest.mark.parametrize("frame", [pd.DataFrame({"a": [1]}), pl.DataFrame({"a": [1]}), pl.LazyFrame({"a": [1]})])
def test_a_bare_frame_is_no_list(frame: object) -> None:
    """As a list, it would be the names of its columns."""
    with pytest.raises(SourceError, match=r"write items_from\(frame, key="):
        source(frame)


def test_a_lazy_frame_is_collected() -> None:
    """Whoever dispatches it wants its rows."""
    assert items_from(pl.LazyFrame({"id": ["a"]}), key="id")[0].key == "a"


def report(*outcomes: Outcome) -> Report:
    """Return a report with a ledger row for each outcome."""
    rows = [
        LedgerRow(
            brief=each.brief,
            item=each.item,
            disposition="merged" if each.status == "succeeded" else "failed",
            by=Ref(brief="b", item=each.item) if each.status == "failed" else None,
        )
        for each in outcomes
    ]
    return Report(status="gaps", message="", ledger=tuple(rows), outcomes=outcomes)


SAID = report(
    Outcome(
        brief="b",
        item="10",
        status="succeeded",
        value={"n": 1, "ok": True, "mixed": 1, "deep": {"x": [1]}, "big": 2**70, "f": 2},
        attempts=(Attempt(usage=Usage(requests=1, prompt_tokens=3, cost_usd=0.5)),),
    ),
    Outcome(brief="a", item="9", status="succeeded", value="text", attempts=(Attempt(usage=Usage(cost_usd=None)),)),
    Outcome(brief="a", item="10", status="succeeded", value={"mixed": "t", "f": 0.5}),
    Outcome(brief="b", item="9", status="failed", error=Failure(kind="refused", message="No.")),
)


@BOTH
@pytest.mark.parametrize("key", ["id", "item", "model"])
def test_outcomes_join_back(make: Callable[[Any], Any], key: str) -> None:
    """A row for each (brief, item), gaps included; the key in the type that it had, whatever it is called."""
    frame = make({key: [11, 10, 9], "own": [*"xyz"]})
    out = outcomes_frame(SAID, frame, key=key)
    assert type(out) is type(frame)
    assert (out[key].dtype, next(iter(out.columns))) == (frame[key].dtype, key)
    assert list(zip(out[key].to_list(), out["brief"].to_list(), out["status"].to_list(), strict=True)) == [
        (9, "a", "succeeded"),
        (9, "b", "failed"),
        (10, "a", "succeeded"),
        (10, "b", "succeeded"),
    ]
    joined = frame.merge(out, on=key, how="left") if make is pd.DataFrame else frame.join(out, on=key, how="left")
    assert len(joined) == 5  # the item that was not dispatched stays, without an outcome
    assert ("outcome.model" in out.columns) == (key == "model")


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_answers_are_flattened(library: Any) -> None:  # noqa: ANN401 -- one of three words
    """Numbers, flags and texts as such, what is mixed or nested as JSON; what is missing stays missing."""
    make: Any = outcomes_frame  # what it returns is told by a word
    made = to_narwhals(make(SAID, library))
    table: dict[str, list[Any]] = {
        name: [None if missing else value for value, missing in zip(made[name], made[name].is_null(), strict=True)]
        for name in made.columns
    }
    assert table["item"] == ["9", "9", "10", "10"]
    assert table["answer"][:3] == ["text", None, '{"mixed": "t", "f": 0.5}']
    assert table["answer.n"] == [None, None, None, 1]
    assert table["answer.ok"] == [None, None, None, True]
    assert table["answer.f"] == [None, None, 0.5, 2.0]
    assert table["answer.mixed"] == [None, None, '"t"', "1"]
    assert table["answer.deep"] == [None, None, None, '{"x": [1]}']
    assert table["answer.big"] == [None, None, None, str(2**70)]
    assert (table["error_kind"][1], table["error"][1], table["by"][1]) == ("refused", "No.", "b/9")
    assert (table["tokens"], table["cost_usd"]) == ([0, 0, 0, 3], [None, 0.0, 0.0, 0.5])


def test_a_number_that_no_column_holds_exactly_is_text() -> None:
    """Instead of being rounded."""
    said = [Outcome(brief="b", item=str(n), status="succeeded", value={"n": n}) for n in (2**60, 0.5)]
    assert sorted(outcomes_frame(report(*said), "polars")["answer.n"].to_list()) == ["0.5", str(2**60)]


def test_a_report_of_nothing_is_an_empty_frame() -> None:
    """No outcomes, no rows."""
    assert outcomes_frame(Report(status="failed", message=""), "polars").height == 0


@pytest.mark.parametrize(
    ("like", "key", "why"),
    [
        pytest.param("panda", "", "'panda' is no library of frames; write one of 'pandas'", id="library"),
        pytest.param(
            pd.DataFrame({"id": [9]}), "id", "items that column 'id' of the frame hasn't: '10'. Give", id="other"
        ),
        pytest.param(pd.DataFrame({"id": [9]}), "ident", "no column 'ident'", id="column"),
        pytest.param([9], "id", "Not a DataFrame", id="no-frame"),
    ],
)
def test_what_does_not_fit_is_refused(like: Any, key: str, why: str) -> None:  # noqa: ANN401 -- anything
    """Instead of losing outcomes."""
    with pytest.raises(JobError, match=why):
        outcomes_frame(SAID, like, key=key)


def test_many_items_that_are_not_there_are_counted() -> None:
    """The first are named."""
    many = report(*(Outcome(brief="b", item=f"i{n}", status="failed") for n in range(7)))
    with pytest.raises(JobError, match=r"'i4' and 2 more\. Give"):
        outcomes_frame(many, pd.DataFrame({"id": ["x"]}), key="id")


def test_a_report_from_a_file_has_no_outcomes() -> None:
    """And is not taken for one without any."""
    with pytest.raises(JobError, match=r"`report.json` leaves them out"):
        outcomes_frame(Report.model_validate_json(SAID.model_dump_json()), "pandas")


@pytest.mark.slow
@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=8), st.randoms(use_true_random=False))
def test_no_row_is_lost_on_the_way_there_and_back(keys: list[int], random: Any) -> None:  # noqa: ANN401 -- hypothesis's
    """Whatever the keys and the order of the outcomes, each key comes back once, as it was."""
    for frame in (pd.DataFrame({"id": pd.Series(keys, dtype="int64")}), pl.DataFrame({"id": keys}, {"id": pl.Int64})):
        items = items_from(frame, key="id")
        said = [Outcome(brief="b", item=item.key, status="failed") for item in items]
        random.shuffle(said)
        out = outcomes_frame(Report(status="failed", message="", outcomes=tuple(said)), frame, key="id")
        assert sorted(out["id"].to_list()) == sorted(keys)
