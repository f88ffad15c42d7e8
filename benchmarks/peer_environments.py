"""Virtual environments for the peers, one each, so that their dependencies don't conflict with each other or ours.

Run `python -m benchmarks.peer_environments` to create all of them in advance, so that no measurement waits for an
installation. uv installs pinned versions into the user's cache (`PREFECT_DISPATCH_PEERS` names another folder). LOTUS
alone takes 6 GB.
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
"""Time limit of an installation in seconds."""
PYTHON = "3.11"
UV = (sys.executable, "-m", "uv")


class MissingError(Exception):
    """A peer can't be installed on this machine."""


@dataclass(frozen=True)
class Peer:
    """A library that runs in its own environment."""

    module: str
    """The script in `benchmarks/peers`."""
    pins: tuple[str, ...]
    """Pinned packages to install."""
    most_at_once: int = 100
    """Highest concurrency to measure it with; with more it failed or took many minutes."""
    answer: str = "fine"
    """Answer that the model's server gives it."""


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
    "docetl": Peer("docetl", ("docetl==0.3.0",), answer='{"said": "fine"}'),
    "lotus": Peer("lotus", ("lotus-ai==1.2.4",)),
}

LINKERS = {
    "splink": Peer("splink_dedupe", ("splink==4.0.17",)),
    "recordlinkage": Peer("recordlinkage_ecm", ("recordlinkage==0.16",)),
}
"""Libraries that find records that are the same."""


def prepare_interpreter(name: str) -> Path:
    """Return the interpreter of a peer; its environment is created if it doesn't exist.

    Raises:
        MissingError: If it can't be created; the message has the reason.
    """
    pins = {**PEERS, **LINKERS}[name].pins
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


def install_peer(name: str) -> str:
    """Create a peer's environment and return `ready`, or the reason why it can't be created."""
    try:
        prepare_interpreter(name)
    except MissingError as missing:
        return str(missing)
    return "ready"


def _run(*command: str) -> None:
    """Run a command of uv.

    Raises:
        MissingError: If it fails or exceeds the time limit.
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
    for each in (*PEERS, *LINKERS):
        print(f"{each}: {install_peer(each)}")
