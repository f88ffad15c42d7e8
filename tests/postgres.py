"""A PostgreSQL server of a test's own, where its programs are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

INITDB = shutil.which("initdb") or next((str(path) for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
"""The program that makes a database cluster, if there is one."""


@contextmanager
def postgres(password: str) -> Generator[str, None, None]:
    """Run a server on a free port, and yield its URL.

    Args:
        password: The password of its only user, `me`.
    """
    assert INITDB is not None
    folder = Path(mkdtemp(prefix="pg-"))
    (folder / "password").write_text(password, encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    control, data = str(Path(INITDB).with_name("pg_ctl")), folder / "data"
    user: dict[str, str | int] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        found = pwd.getpwnam("postgres")
        user = {"user": found.pw_uid, "group": found.pw_gid}
        for path in (folder, folder / "password"):
            os.chown(path, found.pw_uid, found.pw_gid)

    def run(*command: str) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)  # type: ignore[call-overload]  # noqa: S603 -- our own commands

    run(INITDB, "-D", str(data), "-U", "me", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync")
    options = f"-h 127.0.0.1 -p {port} -k {folder} -F"
    run(control, "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg2://me:{password}@127.0.0.1:{port}/postgres"
    finally:
        run(control, "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    with postgres("secret") as url:
        sys.stdout.write(url + "\n")
