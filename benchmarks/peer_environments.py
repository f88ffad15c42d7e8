"""Peers in virtual environments of their own, so that none of them meets what another needs, least of all us.

Run `python -m benchmarks.rooms` to make them all beforehand, so that no measurement waits for it: with uv, of pinned
versions, in the user's cache (`PREFECT_DISPATCH_PEERS` for another folder). LOTUS alone takes 6 GB.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import platformdirs

INSTALLING_S = 900
"""Seconds that one may take to install."""
PYTHON = "3.11"
UV = (sys.executable, "-m", "uv")


class MissingError(Exception):
    """A peer doesn't install here."""


@dataclass(frozen=True)
class Peer:
    """What runs in an environment of its own."""

    module: str
    """The script in `benchmarks/peers`."""
    pins: tuple[str, ...]
    """What is installed."""
    most_at_once: int = 100
    """How many calls at once it is measured with at most; beyond that it has failed or taken many minutes."""
    said: str = "fine"
    """What the model says to it."""


_CURATOR = ("bespokelabs-curator==0.1.31",)
_PYDANTIC_AI = (
    "pydantic-ai-slim[openai,prefect]==2.59.0",  # the last that takes our Prefect
    "prefect==3.8.8",
    "fastapi==0.150.0",
    "sqlalchemy==2.0.58",
)
PEERS = {
    "curator": Peer("curator", _CURATOR, 500),
    "curator_again": Peer("curator_again", _CURATOR, 0),
    "pydantic_ai": Peer("pydantic_ai_gathered", _PYDANTIC_AI),
    "pydantic_ai_prefect": Peer("pydantic_ai_prefect", _PYDANTIC_AI),
    "docetl": Peer("docetl", ("docetl==0.3.0",), said='{"said": "fine"}'),
    "lotus": Peer("lotus", ("lotus-ai==1.2.4",)),
}


def python_of(name: str) -> Path:
    """Return the interpreter of a peer, whose environment is made if it isn't there.

    Raises:
        MissingError: If it can't be made; it says why.
    """
    pins = PEERS[name].pins
    kept = os.environ.get("PREFECT_DISPATCH_PEERS")
    folder = Path(kept) if kept else platformdirs.user_cache_path("prefect-dispatch") / "peers"
    place = folder / hashlib.sha256("\n".join((PYTHON, *pins)).encode()).hexdigest()[:12]
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        shutil.rmtree(place, ignore_errors=True)
        _run(*UV, "venv", "--quiet", "--python", PYTHON, str(place))
        _run(*UV, "pip", "install", "--quiet", "--python", str(python), *pins)
        (place / "ready").touch()
    return python


def made(name: str) -> str:
    """Return whether a peer's environment is there, after making it; else why not."""
    try:
        python_of(name)
    except MissingError as missing:
        return str(missing)
    return "ready"


def _run(*command: str) -> None:
    """Run a command of uv.

    Raises:
        MissingError: If it fails, or takes too long.
    """
    try:
        done = subprocess.run(  # noqa: S603 -- our own command
            command, capture_output=True, text=True, timeout=INSTALLING_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise MissingError(f"not installed within {INSTALLING_S} s") from None
    if done.returncode:
        raise MissingError(f"not installed: {' '.join(done.stderr.split())[-200:]}")


if __name__ == "__main__":
    for each in PEERS:
        print(f"{each}: {made(each)}")
