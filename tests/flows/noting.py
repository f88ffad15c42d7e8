"""An executor that other processes can be sent, and that notes in a folder what it was asked, and where."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from prefect_dispatch import Ask, Reply
from prefect_dispatch.errors import RejectedError, TerminalError


@dataclass
class Noting:
    """Answers in capitals; what else it does, the item's value says."""

    folder: str
    fingerprint: str
    key: str = ""
    """A secret, which its repr shows."""

    async def answer(self, ask: Ask) -> Reply:
        """Note the ask, and answer, or fail as told."""
        said = str(ask.item.value)
        _note(self.folder, ask.item.key)
        if "slow" in said:
            await asyncio.sleep(0.3)
        if "wait" in said:
            for _ in range(1200):
                if _may_go(self.folder):
                    break
                await asyncio.sleep(0.1)
        if "refused" in said:
            raise RejectedError("no")
        if "expired" in said:
            raise TerminalError("the key expired")
        return Reply(value=said.upper())


def asked(folder: Path) -> list[tuple[str, int]]:
    """Return the keys that were asked, and in which process, in order of arrival."""
    file = folder / "asks"
    lines = file.read_text(encoding="utf-8").split("\n") if file.exists() else []
    return [(key, int(process)) for line in lines if line for key, process in [line.split(" ")]]


def _note(folder: str, key: str) -> None:
    with Path(folder, "asks").open("a", encoding="utf-8") as file:
        file.write(f"{key} {os.getpid()}\n")


def _may_go(folder: str) -> bool:
    return Path(folder, "go").exists()
