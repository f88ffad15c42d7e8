"""An empty database of Prefect that is migrated already: a server that migrates its own needs ten more seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import prefect
from filelock import FileLock

CACHE = Path(__file__).parent.parent / ".pytest_cache" / "prefect"
"""Outlives a session; a version of Prefect has a file of its own."""
MIGRATED = ("PREFECT_API_DATABASE_MIGRATE_ON_START", "false")
"""Tells a server that has such a database that there is nothing to migrate: finding out takes it two seconds."""


def empty_database(path: Path) -> None:
    """Make an empty database of Prefect, with all of its tables, as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(cached_database(), path)


def cached_database() -> Path:
    """Return the migrated database, and make it if there is none; of several processes one does, and others wait."""
    CACHE.mkdir(parents=True, exist_ok=True)
    cached = CACHE / f"{prefect.__version__}.db"
    with FileLock(cached.with_suffix(".lock")):
        if not cached.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                made = Path(folder) / "prefect.db"
                url = f"sqlite+aiosqlite:///{made}"
                env = {**os.environ, "PREFECT_HOME": folder, "PREFECT_SERVER_DATABASE_CONNECTION_URL": url}
                command = [sys.executable, "-W", "ignore", "-m", "prefect", "server", "database", "upgrade", "-y"]
                subprocess.run(command, env=env, check=True, capture_output=True)  # noqa: S603 -- Prefect's command
                made.replace(cached)
    return cached
