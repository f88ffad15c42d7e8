"""Find the program of a coding agent, on this machine or in an image, and check its version."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.coding.container import probe_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.executors.coding.adapter import Adapter
    from prefect_dispatch.executors.coding.container import Container

_VERSION = re.compile(r"\b\d+(?:\.\d+)+\b")
_SECONDS = 60.0
"""Seconds that an agent may take to print its version; with a cold disk cache it is slow."""
_log = logging.getLogger("prefect_dispatch")


def find_program_in_image(adapter: Adapter, program: str, container: Container) -> str:
    """Find an agent's program in a container's image, check its version, and return its name or path there.

    Args:
        adapter: The agent's adapter.
        program: The program in the job: a name that is looked up in the image's PATH, or an absolute path.
        container: The container.

    Raises:
        JobError: If no container can be run here, or if the program doesn't exist, doesn't run, or is too old.
    """
    if os.sep in program and not program.startswith(os.sep):
        raise JobError(
            f"executor.program: {program!r} is a path on this machine; with executor.container, name a program of the "
            "image, or its absolute path there."
        )
    printed = probe_image(container, program, adapter.version_arguments)
    if adapter.version_arguments:
        match = _VERSION.search(printed)
        _require_tested(adapter, match[0] if match else "")
    return program


def find_program(adapter: Adapter, program: str, folder: Path) -> str:
    """Find an agent's program, check its version, and return its absolute path.

    Args:
        adapter: The agent's adapter.
        program: The program in the job: a name that is looked up in PATH, or a path.
        folder: The folder that a relative path counts from.

    Raises:
        JobError: If it doesn't exist, doesn't run, or is too old.
    """
    where = str(folder / Path(program).expanduser()) if os.sep in program else program
    path = shutil.which(where)
    if path is None:
        raise JobError(
            f"executor.agent: {adapter.name!r} needs the program {program!r}, which isn't installed here or can't be "
            f"run: {adapter.install}, or give its path under 'executor.program'."
        )
    path = os.path.abspath(path)  # noqa: PTH100 -- links are kept: a program may act by the name of its link
    if adapter.version_arguments:
        _require_tested(adapter, version_of(path, adapter.version_arguments, Path(path).stat().st_mtime_ns))
    return path


@lru_cache(maxsize=32)
def version_of(path: str, arguments: Sequence[str], changed: int) -> str:
    """Run a program to get its version; return an empty text if its output has none.

    Args:
        path: The program.
        arguments: The arguments that make it print its version.
        changed: Modification time of its file in ns; a part of the cache's key only.

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
                encoding="utf-8",
                errors="replace",
                timeout=_SECONDS,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = getattr(error, "strerror", None) or f"it didn't answer within {_SECONDS:g} s"
        raise JobError(f"executor.program: {path!r} doesn't print its version ({why}); reinstall it.") from None
    match = _VERSION.search(done.stdout + done.stderr)
    return match[0] if match else ""


def _require_tested(adapter: Adapter, version: str) -> None:
    """Check the version of an agent's program against the tested ones; log a warning if it is newer.

    Raises:
        JobError: If it is older, or unknown.
    """
    oldest, beyond = adapter.tested_versions
    way_out = f"install a version from {oldest} to below {beyond} ({adapter.install})"
    if not version:
        raise JobError(f"executor.agent: the program of {adapter.name!r} doesn't print its version; {way_out}.")
    found, first, end = (tuple(map(int, each.split("."))) for each in (version, oldest, beyond))
    if found < first:
        raise JobError(f"executor.agent: {adapter.name} {version} is older than what is understood; {way_out}.")
    if found >= end:
        _log.warning("%s %s is newer than what was tested; if its runs fail, %s.", adapter.name, version, way_out)
