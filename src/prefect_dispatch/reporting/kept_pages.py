"""Report pages of runs of deployments, kept in the state folder so that the page server can show them in a browser.

Each run has one page there. Its link has an id that is derived from the run and a secret of the state folder, so it
can't be guessed, and stays the same when the run is retried or resumed. A page is a copy: an output folder that a later
run writes again, moves or removes changes no link.
"""

from __future__ import annotations

import hmac
import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

from pydantic import Field, ValidationError

from prefect_dispatch.errors import JobError
from prefect_dispatch.models.base import Frozen
from prefect_dispatch.processes.state_folder import private_folder, state_folder
from prefect_dispatch.serialization.durable_files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable

KEPT_DAYS = 30
"""Days after which a page is removed."""
MAX_PAGES = 1_000
"""Most pages that are kept; beyond it the oldest ones are removed."""
MAX_TOTAL_BYTES = 1_000_000_000
"""Most bytes of all pages together; beyond it the oldest ones are removed."""
HOST = "127.0.0.1"
"""The address of the page server, which only this machine can reach."""
_ID = re.compile(r"[0-9a-f]{64}")


class PageAddress(Frozen):
    """Address of the page server of a state folder."""

    port: Annotated[int, Field(ge=1, le=65_535)]
    """Its port."""
    secret: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """The secret from which the ids of pages are derived."""

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://{HOST}:{self.port}"

    def page_id(self, run: str) -> str:
        """Return the id of a run's page, by its flow run's id."""
        return hmac.digest(bytes.fromhex(self.secret), run.encode(), "sha256").hex()


def server_folder() -> Path:
    """Return the folder of the page server, accessible to its user only.

    Raises:
        JobError: If the state folder can't be used.
    """
    return private_folder(state_folder() / "reports")


def load_address() -> PageAddress | None:
    """Return the address of the page server; None if none has been started with this state folder."""
    try:
        return PageAddress.model_validate_json((server_folder() / "address.json").read_bytes())
    except (OSError, ValidationError, JobError):  # no server can be started without a state folder
        return None


def save_address(address: PageAddress) -> None:
    """Store the address of the page server, readable by its user only."""
    file = server_folder() / "address.json"
    file.touch(mode=0o600)
    file.chmod(0o600)  # the replacement gets the permissions of the file before it
    write_atomically(file, [address.model_dump_json().encode(), b"\n"])


def keep_page(address: PageAddress, run: str, page: Iterable[str]) -> str:
    """Keep the page of a run, in place of its earlier one, remove pages beyond the limits, and return its link.

    Args:
        address: The address of the page server.
        run: The id of the flow run.
        page: The text of the page, in chunks.

    Raises:
        JobError: If the state folder can't be used.
        OSError: If the page can't be written.
    """
    page_id = address.page_id(run)
    write_atomically(_pages_folder() / page_id, map(str.encode, page))
    prune_pages()
    return f"{address.url}/{page_id}/report.html"


def prune_pages() -> None:
    """Remove the pages that are older than `KEPT_DAYS`, and the oldest ones beyond `MAX_PAGES` and `MAX_TOTAL_BYTES`.

    Raises:
        JobError: If the state folder can't be used.
    """
    pages = list[tuple[float, int, Path]]()
    for file in _pages_folder().iterdir():
        with suppress(FileNotFoundError):  # another process has removed it
            status = file.lstat()
            pages.append((status.st_mtime, status.st_size, file))
    left, oldest = MAX_TOTAL_BYTES, time.time() - KEPT_DAYS * 86_400
    for number, (written, size, file) in enumerate(sorted(pages, reverse=True)):
        left -= size
        if written < oldest or left < 0 or number >= MAX_PAGES:
            with suppress(OSError):
                file.unlink()


def open_page(page_id: str) -> BinaryIO | None:
    """Open a page; return None if there is none of that id.

    A link is not followed, and anything but a regular file is no page.

    Raises:
        JobError: If the state folder can't be used.
    """
    if not _ID.fullmatch(page_id):
        return None
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for its writer.
        handle = os.open(_pages_folder() / page_id, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        return None
    return os.fdopen(handle, "rb")


def _pages_folder() -> Path:
    return private_folder(server_folder() / "pages")
