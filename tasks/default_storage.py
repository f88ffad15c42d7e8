"""Prefect's default result storage, found without a server where none has to be started for it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.filesystems import LocalFileSystem
from prefect.settings.context import get_current_settings
from sqlalchemy.engine import make_url

if TYPE_CHECKING:
    from prefect.settings import Settings

_KEY = "server-default-result-storage"
"""Under which Prefect's server keeps which storage is the default, if anyone chose one."""


def default_folder() -> LocalFileSystem | None:
    """Return the folder in which results lie by default; None where only a server knows.

    Where no server is named, Prefect starts one to ask it, which takes longer than a plan does.
    Its database is a file, and says without a server whether anyone chose another storage.
    """
    settings = get_current_settings()
    if settings.api.url or settings.results.default_storage_block or _may_be_chosen(settings):
        return None
    return LocalFileSystem(basepath=str(settings.results.local_storage_path))


def _may_be_chosen(settings: Settings) -> bool:
    """Return whether a server that Prefect started here could know of a storage that someone chose."""
    secret = settings.server.database.connection_url
    url = make_url(secret.get_secret_value() if secret else "")
    if url.get_backend_name() != "sqlite" or not url.database:
        return True
    file = Path(url.database)
    if not file.exists():
        return False
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return bool(database.execute("SELECT 1 FROM configuration WHERE key = ?", (_KEY,)).fetchone())
    except sqlite3.Error:
        return True
