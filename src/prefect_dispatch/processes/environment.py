"""What a program gets to see of the environment: what is listed here, and what somebody names."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated

from pydantic import StringConstraints

from prefect_dispatch.errors import JobError
from prefect_dispatch.scrub import hide, secrets_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from prefect_dispatch.processes.leases import Lease

PASSED = (
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
"""The variables that every program gets: where programs are, the language, the time zone, whom to trust. No proxies,
whose addresses may hold a password, and no keys."""
LEASE = "PREFECT_DISPATCH_LEASE"
"""The variable by which a reaper knows the processes of a lease."""
MARKED = re.compile(r"PREFECT_DISPATCH_.*|ITEM_.*|REPORT_DIR")
"""Names of variables that are set for each program anew, and nowhere else."""
RESERVED = re.compile(rf"{MARKED.pattern}|HOME|TMPDIR|TMP|TEMP")
"""Names of variables that can't be passed."""

Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]
"""The name of an environment variable."""


def environment(mine: Lease, *, pass_env: Sequence[str] = (), more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the complete environment of a program, which inherits nothing else.

    HOME and TMPDIR are folders of its own in that of its lease. Git never looks for a repository above the
    state folder. The values of variables with names such as `…_TOKEN` or `…_KEY` are hidden from now on, as
    they are whenever such a variable is set.

    Args:
        mine: The lease for which it runs.
        pass_env: Names of further variables that it gets as they are set here.
        more: Variables that are set to something else; they win.

    Raises:
        JobError: If one of the named variables isn't set.
    """
    require_set(pass_env)
    home, temporary = (own_folder(mine.path / name) for name in ("home", "tmp"))
    given = {name: os.environ[name] for name in (*PASSED, *pass_env) if name in os.environ}
    hide(secrets_in(given))
    return {
        "PATH": os.defpath,
        **given,
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "GIT_CEILING_DIRECTORIES": str(mine.path.parent),
        **(more or {}),
        LEASE: mine.id,
    }


def require_set(names: Sequence[str]) -> None:
    """Check that variables which are to be passed can be.

    Raises:
        JobError: If one isn't set, or is set for each program anew.
    """
    for name in names:
        if RESERVED.fullmatch(name):
            raise JobError(f"pass_env: {name!r} is set for each program anew, and can't be passed; leave it out.")
        if name not in os.environ:
            raise JobError(f"pass_env: the environment variable {name!r} is not set here: set it, or leave it out.")


def own_folder(path: Path) -> Path:
    """Return a folder, made if it isn't there, that nobody else can look into."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
