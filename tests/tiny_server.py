"""A small application in place of Prefect's server, and others that do not start."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any


def create_app() -> Any:  # noqa: ANN401 -- an ASGI application
    """Return an application that answers each request with the number of its process."""
    return _answer


def hang() -> Any:  # noqa: ANN401 -- an ASGI application
    """Return an application that never ends its start."""
    return _hang


def refuse() -> Any:  # noqa: ANN401 -- an ASGI application
    """End the process as an application does whose database can't be opened."""
    os.write(2, b"the database is locked\n")
    os._exit(4)


def once() -> Any:  # noqa: ANN401 -- an ASGI application
    """Return an application that starts only the first time, as far as a file knows."""
    started = Path(os.environ["STARTED"])
    if started.exists():
        refuse()
    started.touch()
    return _answer


async def _answer(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 -- ASGI
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})


async def _hang(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 -- ASGI
    await asyncio.sleep(3600)
