"""Outcomes in tables and Parquet files: one row each, however often they are written, and none lost."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, inspect, make_url, text

from prefect_dispatch.errors import JobError
from prefect_dispatch.models.ledger import LedgerRow
from prefect_dispatch.models.outcome import Failure, Outcome
from prefect_dispatch.models.report import Report
from prefect_dispatch.reporting.tables import write_outcomes
from prefect_dispatch.sources import read_items
from prefect_dispatch.sources.tabular import Parquet, Sql
from prefect_dispatch.tasks.table_tasks import MAX_KEY_LENGTH, asset_key, table_key, write_parquet, write_table
from tests.databases import filled, found, saved
from tests.postgres import INITDB, postgres

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from sqlalchemy import Engine

HOSTILE = """x"); DROP TABLE "results"; --'"""


BARE = """
CREATE TABLE bare (job, brief, item, status, disposition, "by", reason, answer, error_kind, error, model, origin,
    fingerprint, attempts, tokens, cost_usd, run, written_at);
CREATE VIEW locked AS SELECT * FROM bare;
"""


def said(item: str, value: Any = None, brief: str = "terms") -> Outcome:  # noqa: ANN401 -- JSON
    """Return an outcome: a failure where there is no value."""
    if value is None:
        return Outcome(brief=brief, item=item, status="failed", error=Failure(kind="refused", message="No\0."))
    return Outcome(brief=brief, item=item, status="succeeded", value=value)


def report(*outcomes: Outcome, run: str = "run-1") -> Report:
    """Return the report of a run."""
    rows = tuple(LedgerRow(brief=each.brief, item=each.item, disposition="merged") for each in outcomes)
    return Report(status="gaps", message="", ledger=rows, outcomes=outcomes, run={"flow_run": {"id": run, "name": ""}})


@pytest.fixture(scope="module")
def server() -> Generator[str, None, None]:
    """The URL of a PostgreSQL server."""
    if INITDB is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("PostgreSQL isn't installed: apt-get install postgresql")
    with postgres("hunter2") as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Engine, None, None]:
    """An empty database of either kind."""
    url = f"sqlite:///{tmp_path / 'r.sqlite'}" if request.param == "sqlite" else request.getfixturevalue("server")
    made = create_engine(url)
    yield made
    if request.param == "postgresql":
        with made.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
    made.dispose()


def write(engine: Engine, made: Report, table: str = "results", **more: Any) -> dict[str, int]:  # noqa: ANN401
    """Write a report."""
    options: dict[str, Any] = {"schema": None, "job": "", "vanished": "keep", **more}
    return write_outcomes(engine, made, table, **options)


def rows(engine: Engine, columns: str = "item, status, answer, run") -> list[tuple[Any, ...]]:
    """Return what stands in the table."""
    with engine.connect() as connection:
        query = text(f"SELECT {columns} FROM results ORDER BY job, item, brief")  # noqa: S608 -- our own words
        return [tuple(row) for row in connection.execute(query)]


def test_a_rerun_replaces_rows_and_adds_none(engine: Engine) -> None:
    """One row for each (brief, item): a gap that closed is an answer now, an answer that broke a gap."""
    assert write(engine, report(said("a", {"n": 1}), said("b"))) == {"written": 2, "deleted": 0}
    assert write(engine, report(said("a"), said("b", "yes"), run="run-2")) == {"written": 2, "deleted": 0}
    assert rows(engine) == [("a", "failed", None, "run-2"), ("b", "succeeded", "yes", "run-2")]
    assert rows(engine, "error_kind, error, disposition") == [("refused", "No␀.", "merged"), (None, None, "merged")]


def test_vanished_items_are_kept_unless_told(engine: Engine) -> None:
    """Kept rows say which run wrote them; what is deleted is of the same job alone."""
    write(engine, report(said("a", 1), said("b", 2)))
    write(engine, report(said("z", 9)), job="other")
    assert write(engine, report(said("a", 3), run="run-2")) == {"written": 1, "deleted": 0}
    assert [row[0::3] for row in rows(engine)] == [("a", "run-2"), ("b", "run-1"), ("z", "run-1")]
    assert write(engine, report(said("a", 3)), vanished="delete") == {"written": 1, "deleted": 1}
    assert [row[0] for row in rows(engine)] == ["a", "z"]
    assert write(engine, report(), vanished="delete") == {"written": 0, "deleted": 1}


def test_hostile_words_are_data(engine: Engine) -> None:
    """Names of tables and jobs, keys and answers: quoted or bound, whatever stands in them."""
    write(engine, report(said("a", 1)))
    made = report(said(HOSTILE, {HOSTILE: "\0"}), said("{{ x }} %s :x"))
    for _ in range(2):
        write(engine, made, HOSTILE, job=HOSTILE, vanished="delete")
    assert len(rows(engine)) == 1
    quoted = engine.dialect.identifier_preparer.quote_identifier(HOSTILE)
    with engine.connect() as connection:
        query = f"SELECT item FROM {quoted} ORDER BY item"  # noqa: S608 -- what is tested
        assert [row[0] for row in connection.exec_driver_sql(query.replace("%", "%%"))] == [
            HOSTILE,
            "{{ x }} %s :x",
        ]


def test_a_failure_writes_nothing(engine: Engine) -> None:
    """All rows in one transaction; what is no such table is left as it is."""
    write(engine, report(said("a", 1)))
    with pytest.raises(JobError, match="Two items have the key 'b␀' once NUL is ␀"):
        write(engine, report(said("a", 2), said("b\0", 1), said("b␀", 2)))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE others (item TEXT)"))
    with pytest.raises(JobError, match="Table 'others' exists, but has no column 'job': it holds something else"):
        write(engine, report(said("a", 2)), "others")
    assert rows(engine) == [("a", "succeeded", "1", "run-1")]


def test_a_schema_is_named_apart(engine: Engine) -> None:
    """SQLite calls its own `main`."""
    schema = "main" if engine.dialect.name == "sqlite" else "public"
    write(engine, report(said("a", 1)), schema=schema)
    write(engine, report(said("a", 2)), schema=schema)
    assert rows(engine, "answer") == [("2",)]


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    runs=st.lists(
        st.dictionaries(st.text("ab\0'\"", min_size=1, max_size=2), st.one_of(st.none(), st.integers())), max_size=4
    )
)
def test_the_last_run_is_what_stands_there(runs: list[dict[str, int | None]]) -> None:
    """Whatever ran before: with `delete` the table is the last report, with `keep` the last of each item."""
    for vanished in ("keep", "delete"):
        made = create_engine("sqlite://")
        write(made, report())
        known: dict[str, str | None] = {}
        for run in runs:
            write(made, report(*(said(item, value) for item, value in run.items())), vanished=vanished)
            known = {} if vanished == "delete" else known
            known |= {key.replace("\0", "␀"): None if value is None else str(value) for key, value in run.items()}
        assert dict(rows(made, "item, answer")) == known
        made.dispose()


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_the_task_writes_through_a_block(tmp_path: Path) -> None:
    """And says how many rows; what is written is a source of items again."""
    path = tmp_path / "results.sqlite"
    name = filled(path, "")
    assert write_table.fn(report(said("a", {"n": 1}), said("b")), "results", name, job="j") == {
        "written": 2,
        "deleted": 0,
    }
    assert found(path, "SELECT job, item, status FROM results ORDER BY item") == [
        ("j", "a", "succeeded"),
        ("j", "b", "failed"),
    ]
    again = Sql(
        sql="SELECT item, answer FROM results WHERE status = :s", key="item", connection=name, params={"s": "failed"}
    )
    assert [item.key for item in read_items(again, tmp_path)] == ["b"]


@pytest.mark.slow
@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("table", "more", "why"),
    [
        pytest.param("", {}, "The table has no name", id="name"),
        pytest.param("t", {"vanished": "drop"}, "vanished: 'drop' is neither 'keep' nor 'delete'", id="vanished"),
        pytest.param("t", {"vanished": "delete"}, "takes away the rows of one job; say which by 'job'", id="whose"),
        pytest.param("locked", {}, "^Connection 'db-.*': cannot modify locked because it is a view", id="view"),
        pytest.param("bare", {}, "ON CONFLICT clause does not match any PRIMARY KEY", id="key"),
        pytest.param("t", {"schema": "nowhere"}, "unknown database", id="schema"),
    ],
)
def test_what_the_task_cannot_write_is_told(table: str, more: Any, why: str, tmp_path: Path) -> None:  # noqa: ANN401
    """In a sentence, with the connection; nothing is written."""
    path = tmp_path / "results.sqlite"
    name = filled(path, BARE)
    with pytest.raises(JobError, match=why):
        write_table.fn(report(said("a", 1)), table, name, **more)
    assert found(path, "SELECT * FROM bare") == []


def test_other_databases_are_refused() -> None:
    """Before they are asked for a connection."""
    engine = create_engine("sqlite://")
    engine.dialect.name = "oracle"
    with pytest.raises(JobError, match="written to SQLite and PostgreSQL, not to oracle"):
        write(engine, report(said("a", 1)))


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_postgresql_reads_and_hides_its_password(server: str, tmp_path: Path) -> None:
    """Rows by a server-side cursor in a transaction that allows no writing; a refused login shows nothing."""
    name = saved(server)
    many = Sql(
        sql="SELECT n AS id, n::numeric AS d, now() AS t, :x || E'\\:' AS x FROM generate_series(1, 2500) AS n",
        key="id",
        connection=name,
        params={"x": "y"},
    )
    items = read_items(many, tmp_path)
    assert (len(items), items[-1].key) == (2500, "2500")
    value: Any = items[0].value
    assert (value["d"], value["x"], value["t"][:2]) == ("1", "y:", "20")
    with pytest.raises(JobError, match=r"read-only transaction|syntax error"):
        read_items(Sql(sql="CREATE TABLE x (id INT)", key="id", connection=name), tmp_path)
    with pytest.raises(JobError, match=r"no form in JSON: .*interval|timedelta is neither"):
        read_items(Sql(sql="SELECT 1 AS id, interval '1 day' AS i", key="id", connection=name), tmp_path)
    wrong = saved(server.replace("hunter2", "wr0ng-word"))
    with pytest.raises(JobError, match="password authentication failed") as caught:
        read_items(Sql(sql="SELECT 1 AS id", key="id", connection=wrong), tmp_path)
    assert "wr0ng" not in str(caught.value)


@pytest.mark.usefixtures("store")
def test_outcomes_are_a_parquet_file(tmp_path: Path) -> None:
    """Whole or not at all, in a folder that is made for it; what was there is replaced."""
    for value in (1, 2):
        url = write_parquet.fn(report(said("a", {"n": value}), said("b")), str(tmp_path / "lake"))
    assert url == f"file://{tmp_path}/lake/outcomes.parquet"
    items = read_items(Parquet(parquet="lake", key="item"), tmp_path)
    assert [(each.value["answer.n"], each.value["status"]) for each in items if isinstance(each.value, dict)] == [
        (2, "succeeded"),
        (None, "failed"),
    ]
    assert [path.name for path in (tmp_path / "lake").iterdir()] == ["outcomes.parquet"]
    memory = write_parquet.fn(report(said("a", "x")), "memory://lake/day=1.parquet")
    assert [item.key for item in read_items(Parquet(parquet=memory, key="item"), tmp_path)] == ["a"]


def test_without_pyarrow_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is an extra of this package."""
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(JobError, match=r"pip install 'prefect-dispatch\[parquet\]'"):
        write_parquet.fn(report(said("a", 1)), str(tmp_path))


@pytest.mark.parametrize(
    ("path", "why"),
    [
        pytest.param(
            "nope://x", "Parquet 'nope://x/outcomes.parquet' can't be written: Protocol not known", id="protocol"
        ),
        pytest.param("{}/file/x", "can't be written: NotADirectoryError|FileExistsError", id="no-folder"),
        pytest.param("s3://me:hunter2@b/x", "a URL with a password", id="password"),
    ],
)
def test_a_file_that_cannot_be_written_is_told(path: str, why: str, tmp_path: Path) -> None:
    """In a sentence, and nothing is left behind."""
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match=why) as caught:
        write_parquet.fn(report(said("a", 1)), path.format(tmp_path))
    assert "hunter2" not in str(caught.value)


def test_assets_have_names_that_prefect_takes() -> None:
    """Names that differ stay apart; a table's has no password."""
    assert asset_key("file:///a b") != asset_key("file:///a_b") != asset_key("file:///a?b")
    assert len(asset_key("file:///" + "x" * 600)) == MAX_KEY_LENGTH
    assert table_key(make_url("postgresql://me:secret@db/lake"), None, "results") == "postgresql://db/lake/results"
    assert table_key(make_url("sqlite:////data/r.sqlite"), None, "t") == "sqlite:///data/r.sqlite/t"
    assert table_key(make_url("sqlite://"), None, "t") == "sqlite:////t"


def test_a_table_of_an_earlier_version_stays_as_it_is(engine: Engine) -> None:
    """Its rows are updated without the columns that it doesn't have."""
    write(engine, report(said("a", 1)))
    with engine.begin() as connection:
        for name in ("paid_usd", "requests", "tiers"):
            connection.execute(text(f"ALTER TABLE results DROP COLUMN {name}"))
    assert write(engine, report(said("a", 2), run="run-2")) == {"written": 1, "deleted": 0}
    assert rows(engine) == [("a", "succeeded", "2", "run-2")]
    assert "paid_usd" not in {column["name"] for column in inspect(engine).get_columns("results")}
