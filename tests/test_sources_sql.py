"""Rows of a database as items: bound, read only, in any order, and no password in what goes wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentUpdate

from prefect_dispatch.errors import JobError, SourceError
from prefect_dispatch.flows.job_file import load_job
from prefect_dispatch.sources import read_items, source
from prefect_dispatch.sources.tabular import Sql
from tests.databases import filled, found, saved

if TYPE_CHECKING:
    from pydantic import JsonValue

SCRIPT = """
CREATE TABLE licence (id INTEGER PRIMARY KEY, family TEXT, text TEXT, blob BLOB, score REAL);
INSERT INTO licence VALUES (2, 'permissive', 'b', x'00', 0.5), (10, 'copyleft', 'c', NULL, NULL),
    (1, 'permissive', 'a', NULL, 9e999);
"""
ROOT = Path()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "rows.sqlite"


@pytest.fixture
def connection(store: Path, path: Path) -> str:
    """The name of the block of a database with three licences."""
    return filled(path, SCRIPT)


def read(connection: str, sql: str, **params: JsonValue) -> list[tuple[str, JsonValue]]:
    """Return key and value of the items of a query."""
    items = read_items(source({"sql": sql, "key": "id", "connection": connection, "params": params}), ROOT)
    return [(item.key, item.value) for item in items]


def test_rows_become_items_in_the_order_of_their_keys(connection: str) -> None:
    """Whatever order the database yields them in; whole numbers are keys."""
    rows = read(connection, "SELECT id, text FROM licence ORDER BY text DESC")
    assert rows == [("1", {"id": 1, "text": "a"}), ("2", {"id": 2, "text": "b"}), ("10", {"id": 10, "text": "c"})]


def test_parameters_are_bound_and_never_part_of_the_query(connection: str, path: Path) -> None:
    """A hostile value is a value; a list stands for several."""
    query = "SELECT id FROM licence WHERE family = :family"
    assert [key for key, _ in read(connection, query, family="copyleft")] == ["10"]
    assert read(connection, query, family="x'; DROP TABLE licence; --") == []
    assert [key for key, _ in read(connection, "SELECT id FROM licence WHERE id IN :ids", ids=[1, 2])] == ["1", "2"]
    assert read(connection, r"SELECT 1 AS id, ' \:x' AS t") == [("1", {"id": 1, "t": " :x"})]
    assert len(found(path, "SELECT * FROM licence")) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sql", "why"),
    [
        pytest.param("SELECT ident FROM licence", "no such column: ident", id="column"),
        pytest.param("SELEC 1", 'near "SELEC": syntax error', id="syntax"),
        pytest.param("SELECT text FROM licence", "no column 'id'; known are 'text'", id="key"),
        pytest.param("SELECT id, id FROM licence", "column 'id' is there twice", id="twice"),
        pytest.param("SELECT NULL AS id", "row 1: the key must be text that isn't empty", id="null-key"),
        pytest.param("SELECT 1.5 AS id", "row 1: the key must be text", id="number-key"),
        pytest.param("SELECT 1 AS id UNION ALL SELECT '1'", "Two items have the key '1': numbers 1 and 2", id="equal"),
        pytest.param(
            "SELECT id, blob FROM licence WHERE id = 2", "row 1: column 'blob' has no form in JSON", id="blob"
        ),
        pytest.param("SELECT id, score FROM licence WHERE id = 1", "column 'score' .*inf is no number", id="infinity"),
        pytest.param("DELETE FROM licence", "attempt to write a readonly database", id="write"),
        pytest.param("PRAGMA foreign_keys = ON", "yields no rows", id="no-rows"),
        pytest.param("SELECT id FROM licence; SELECT 1", "one statement at a time", id="two"),
        pytest.param("SELECT id FROM licence WHERE id = :id", ":id has no value in `params`", id="unbound"),
    ],
)
def test_what_is_wrong_is_told(connection: str, path: Path, sql: str, why: str) -> None:
    """In a sentence with the connection or the parameter, before anything is asked; nothing is written."""
    with pytest.raises(SourceError, match=why) as caught:
        read(connection, sql)
    assert "[SQL" not in str(caught.value)
    assert len(found(path, "SELECT * FROM licence")) == 3


@pytest.mark.slow
def test_a_parameter_without_a_place_is_told(connection: str) -> None:
    """A misspelt one would change what is read."""
    with pytest.raises(SourceError, match=":familly has no place in the query"):
        read(connection, "SELECT id FROM licence", familly="x")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        pytest.param(
            "no-such-block", "There is no block 'no-such-block' of type 'sqlalchemy-connector'; make", id="none"
        ),
        pytest.param("secret/x", "'secret' is no 'sqlalchemy-connector'", id="kind"),
    ],
)
def test_a_block_that_is_not_there_is_told(name: str, why: str) -> None:
    """With what to make."""
    with pytest.raises(SourceError, match=why):
        read(name, "SELECT 1 AS id")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "url",
    [
        pytest.param("postgresql+nodriver://me:hunter2@127.0.0.1:1/db", id="dialect"),
        pytest.param("mssql+pymssql://me:hunter2@127.0.0.1:1/db", id="driver"),
        pytest.param("sqlite:////no/such/hunter2/rows.sqlite", id="path"),
    ],
)
def test_no_error_shows_a_password(url: str) -> None:
    """Whatever fails."""
    with pytest.raises(SourceError, match=r"^Connection 'db-") as caught:
        read(saved(url), "SELECT 1 AS id")
    assert "hunter2" not in str(caught.value).replace("/no/such/hunter2", "")
    assert caught.value.__cause__ is None


def test_a_job_file_may_name_a_query(tmp_path: Path) -> None:
    """Its keys are those of the design, and a query without a key column is refused."""
    job = tmp_path / "job.yaml"
    said = "briefs: [{name: a, instructions: Do.}]\nitems: {sql: select 1 as id, connection: lake"
    job.write_text(said + ", key: id}")
    assert source(load_job(job).items) == Sql(sql="select 1 as id", key="id", connection="lake")
    job.write_text(said + "}")
    with pytest.raises(JobError, match=r"key: Field required"):
        load_job(job)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_block_that_is_not_valid_any_more_is_told() -> None:
    """Without what is in it: somebody may have typed a password."""
    name = saved("sqlite://")
    with get_client(sync_client=True) as client:
        found = client.read_block_document_by_name(name, "sqlalchemy-connector")
        client.update_block_document(found.id, BlockDocumentUpdate(data={"connection_info": "hunter2"}))
    with pytest.raises(SourceError, match=f"The block '{name}' of type 'sqlalchemy-connector' can't be used") as caught:
        read(name, "SELECT 1 AS id")
    assert "hunter2" not in str(caught.value)


def test_without_prefect_sqlalchemy_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra of this package."""
    monkeypatch.setitem(sys.modules, "prefect_sqlalchemy", None)
    with pytest.raises(SourceError, match=r"pip install 'prefect-dispatch\[sql\]'"):
        read("lake", "SELECT 1 AS id")
