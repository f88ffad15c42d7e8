"""The names under which files and tables are Prefect's assets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dispatch.fingerprint import digest

if TYPE_CHECKING:
    from sqlalchemy import URL

LONGEST = 512
"""Characters of an asset's key, at most."""
_REFUSED = re.compile(r"[^A-Za-z0-9._~:/@!$()*+,;=-]")
"""What Prefect refuses in a key, and what is no part of a URI as it stands."""


def asset_key(uri: str) -> str:
    """Return a URI as the key of an asset, the same for the same URI.

    What can't stand in a key becomes `_`, and part of a digest keeps it apart from others.

    Example:
        >>> asset_key("s3://lake/day=1/rows.parquet")
        's3://lake/day=1/rows.parquet'
        >>> asset_key("file:///data/my report.json")
        'file:///data/my_report.json-4eb21c00'
    """
    key = _REFUSED.sub("_", uri)
    if key == uri and len(key) <= LONGEST:
        return key
    name = digest(uri)[:8]
    return f"{key[: LONGEST - len(name) - 1]}-{name}"


def file_key(path: Path) -> str:
    """Return the key of a file or folder on this machine.

    Example:
        >>> file_key(Path("/data/out/report.json"))
        'file:///data/out/report.json'
    """
    return asset_key(f"file://{path.absolute().as_posix()}")


def table_key(url: URL, *names: str | None) -> str:
    """Return the key of a table, or of a whole database: without user, password and driver.

    Args:
        url: The database's.
        names: Schema and table.

    Example:
        >>> from sqlalchemy import make_url
        >>> table_key(make_url("postgresql+psycopg2://me:secret@db.example.org:5432/lake"), "public", "results")
        'postgresql://db.example.org:5432/lake/public/results'
    """
    host = f"{url.host}:{url.port}" if url.host and url.port else url.host or ""
    database = url.database or ""
    if url.get_backend_name() == "sqlite" and database not in ("", ":memory:"):
        database = Path(database).absolute().as_posix().removeprefix("/")
    return asset_key("/".join([f"{url.get_backend_name()}://{host}", database, *filter(None, names)]))
