"""Environment of programs: the variables listed here, and those that a job passes explicitly."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated

from pydantic import StringConstraints

from prefect_dispatch.errors import JobError
from prefect_dispatch.security.redaction import register_secrets, secrets_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from prefect_dispatch.processes.leases import Lease

INHERITED = (
    "PATH",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_COLLATE",
    "LC_CTYPE",
    "LC_MESSAGES",
    "LC_NUMERIC",
    "LC_TIME",
    "TZ",
    "USER",
    "LOGNAME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
)
"""The variables that every program gets: for the search path, the language, the time zone and certificates. Neither
proxies, whose addresses may contain a password, nor keys."""
LEASE = "PREFECT_DISPATCH_LEASE"
"""The variable that marks the processes of a lease for the reaper."""
SET_PER_PROGRAM = re.compile(r"PREFECT_DISPATCH_.*|ITEM_.*|REPORT_DIR")
"""Names of variables that are set separately for each program, and can't be set elsewhere."""
RESERVED = re.compile(rf"{SET_PER_PROGRAM.pattern}|HOME|TMPDIR|TMP|TEMP")
"""Names of variables that can't be passed."""

Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]
"""The name of an environment variable."""


def build_environment(
    lease: Lease, *, pass_env: Sequence[str] = (), more: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the complete environment of a program, which inherits nothing else.

    HOME and TMPDIR are folders of its own in that of its lease. Git never searches for a repository above the
    state folder. The values of variables with names such as `…_TOKEN` or `…_KEY` are redacted from here on.

    Args:
        lease: The lease that the program runs for.
        pass_env: Names of further variables that it gets as they are set here.
        more: Variables with other values; these win.

    Raises:
        JobError: If one of the named variables isn't set.
    """
    require_passable(pass_env)
    home, temporary = (private_folder(lease.path / name) for name in ("home", "tmp"))
    inherited = {name: os.environ[name] for name in (*INHERITED, *pass_env) if name in os.environ}
    register_secrets(secrets_in(inherited))
    # Later entries win: nothing replaces the id of the lease, by which the reaper finds the processes.
    return {
        "PATH": os.defpath,
        **inherited,
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "GIT_CEILING_DIRECTORIES": str(lease.path.parent),
        **(more or {}),
        LEASE: lease.id,
    }


def require_passable(names: Sequence[str]) -> None:
    """Check that variables can be passed to a program.

    Raises:
        JobError: If one isn't set, or is reserved.
    """
    for name in names:
        if RESERVED.fullmatch(name):
            raise JobError(f"pass_env: {name!r} is set separately for each program, and can't be passed; leave it out.")
        if name not in os.environ:
            raise JobError(f"pass_env: the environment variable {name!r} is not set here: set it, or leave it out.")


def private_folder(path: Path) -> Path:
    """Create a folder that only its user can access, if it doesn't exist, and return it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
