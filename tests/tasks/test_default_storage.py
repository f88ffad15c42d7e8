"""Where results lie by default, as the database says of a server that nobody started."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from prefect.client.orchestration import get_client
from prefect.filesystems import LocalFileSystem
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    temporary_settings,
)

from prefect_dispatch.tasks.result_store import default_folder
from prefect_dispatch.tasks.run_brief import result_store_for_run
from tests.ui import prefect_server

if TYPE_CHECKING:
    from collections.abc import Generator
    from uuid import UUID


@pytest.fixture
def _home(tmp_path: Path) -> Generator[None]:
    """Settings of someone who never started a server."""
    path = tmp_path / "prefect.db"
    with temporary_settings(
        {PREFECT_HOME: tmp_path, PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{path}"},
        restore_defaults={PREFECT_API_URL},
    ):
        yield


@pytest.mark.usefixtures("_home")
def test_where_no_server_ever_was_results_lie_in_a_folder(tmp_path: Path) -> None:
    """Nothing is started, or made, to find that out."""
    folder = default_folder()
    assert folder is not None
    assert result_store_for_run().folder == Path(str(folder.basepath)).resolve()
    assert not (tmp_path / "prefect.db").exists()


@pytest.mark.usefixtures("_home")
@pytest.mark.parametrize(("row", "known"), [(None, True), ("server-default-result-storage", False), ("other", True)])
def test_a_database_says_whether_a_storage_was_chosen(tmp_path: Path, row: str | None, known: bool) -> None:  # noqa: FBT001 -- a parameter
    """Only a choice needs a server to say which."""
    with closing(sqlite3.connect(tmp_path / "prefect.db")) as database, database:
        database.execute("CREATE TABLE configuration (key TEXT, value TEXT)")
        if row:
            database.execute("INSERT INTO configuration VALUES (?, '{}')", (row,))
    assert (default_folder() is not None) is known


@pytest.mark.usefixtures("_home")
def test_what_only_a_server_knows_is_left_to_it(tmp_path: Path) -> None:
    """A server that is named, a block that is set, another database, one that can't be read."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        assert default_folder() is None
    with temporary_settings({PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK: "local-file-system/mine"}):
        assert default_folder() is None
    for url in ("postgresql+asyncpg://u:p@h/d", "sqlite+aiosqlite:///:memory:?cache=shared"):
        with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: url}):
            assert (default_folder() is None) is url.startswith("postgresql")
    (tmp_path / "prefect.db").write_bytes(b"not a database" * 100)
    assert default_folder() is None


@pytest.mark.slow
def test_a_storage_chosen_on_a_real_server_is_found_after_its_end(tmp_path: Path) -> None:
    """Prefect keeps the choice where it is looked for."""
    with prefect_server(tmp_path) as server, temporary_settings({PREFECT_API_URL: f"{server.url}/api"}):
        assert default_folder() is None
        made = LocalFileSystem(basepath=str(tmp_path / "chosen"))
        _choose(cast("Any", made).save("chosen", _sync=True))
    database = f"sqlite+aiosqlite:///{server.env['PREFECT_HOME']}/prefect.db"
    with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: database}, restore_defaults={PREFECT_API_URL}):
        assert default_folder() is None


def _choose(block: UUID) -> None:
    with get_client(sync_client=True) as client:
        client.update_server_default_result_storage(block)
