"""The agents that are known, and whether the one that a job names is there to be run."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.coding.claude import Claude
from prefect_dispatch.executors.coding.codex import Codex
from prefect_dispatch.executors.coding.generic import Generic, GenericAdapter
from prefect_dispatch.executors.coding.mini import Mini
from prefect_dispatch.executors.coding.opencode import OpenCode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_dispatch.executors.coding.adapter import Adapter

Known = Literal["claude", "codex", "opencode", "mini"]
KNOWN: Mapping[str, Adapter] = {"claude": Claude(), "codex": Codex(), "opencode": OpenCode(), "mini": Mini()}
"""The adapters, by the names that jobs give."""

_VERSION = re.compile(r"\b\d+(?:\.\d+)+\b")
_SECONDS = 60.0
"""How long an agent may take to tell its version; on a cold disk it takes some."""
_log = logging.getLogger("prefect_dispatch")


def adapter_of(agent: str | Generic) -> Adapter:
    """Return the adapter of an agent."""
    return GenericAdapter(agent) if isinstance(agent, Generic) else KNOWN[agent]


def found(adapter: Adapter, program: str, folder: Path) -> str:
    """Return the absolute path of an agent's program, once it has told a version that will do.

    Args:
        adapter: The agent's.
        program: What the job says: a name that is looked up in PATH, or a path.
        folder: Where a relative path is looked up.

    Raises:
        JobError: If it isn't there, doesn't run, or is too old to be understood.
    """
    where = str(folder / Path(program).expanduser()) if os.sep in program else program
    path = shutil.which(where)
    if path is None:
        raise JobError(
            f"executor.agent: {adapter.name!r} needs the program {program!r}, which isn't installed here or can't be "
            f"run: {adapter.install}, or give its path under 'executor.program'."
        )
    path = os.path.abspath(path)  # noqa: PTH100 -- a link stays what it is called: it may decide what is run
    if adapter.version:
        changed = Path(path).stat().st_mtime_ns
        _require_tested(adapter, version_of(path, adapter.version, changed))
    return path


@lru_cache(maxsize=32)
def version_of(path: str, arguments: Sequence[str], changed: int) -> str:
    """Return the version that a program tells, or nothing if there is none in what it prints.

    Args:
        path: The program.
        arguments: What makes it tell.
        changed: When its file was changed: another file is asked again.

    Raises:
        JobError: If it doesn't run.
    """
    del changed
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "COLUMNS": "200"}
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:  # it may still write there
            done = subprocess.run(  # noqa: S603 -- the program that the job names
                [path, *arguments],
                env={**env, "HOME": home, "TMPDIR": home},
                cwd=home,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = getattr(error, "strerror", None) or f"it didn't answer within {_SECONDS:g} s"
        raise JobError(f"executor.program: {path!r} doesn't tell its version ({why}); install it anew.") from None
    told = _VERSION.search((done.stdout + done.stderr).decode("utf-8", "replace"))
    return told[0] if told else ""


def _require_tested(adapter: Adapter, version: str) -> None:
    oldest, beyond = adapter.tested
    way_out = f"install a version from {oldest} to below {beyond} ({adapter.install})"
    if not version:
        raise JobError(f"executor.agent: the program of {adapter.name!r} doesn't tell its version; {way_out}.")
    if _order(version) < _order(oldest):
        raise JobError(f"executor.agent: {adapter.name} {version} is older than what is understood; {way_out}.")
    if _order(version) >= _order(beyond):
        _log.warning("%s %s is newer than what was tested; if its runs fail, %s.", adapter.name, version, way_out)


def _order(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
