"""Where shards stand for runs elsewhere, and what came of them: in the result storage, under keys of their own.

The key of a shard names the digest of what is written there, so that a run which was asked to do it does that and
nothing else, whoever else can write into the storage.
"""

from __future__ import annotations

import re
import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError
from prefect_dispatch.tasks.shard_records import WrittenShard, digest_of, packed, unpacked
from prefect_dispatch.tasks.shard_results import WrittenResult

if TYPE_CHECKING:
    from uuid import UUID

    from prefect_dispatch.tasks.shelf import Shelf

FOLDER = "prefect-dispatch-shards"
"""Where they stand in the storage."""
KEY = rf"^{FOLDER}/[0-9a-f-]{{36}}/[0-9a-f]{{64}}$"
"""What a key looks like: the run that wrote it, and the digest of what it wrote."""
CAME = ".came"
"""The end of the key of what came of a shard."""
OLD_S = 14 * 86_400.0
"""Seconds after which what a run has left that died is of no use to anybody."""


class ShardPlaces:
    """The shards of runs, and what came of them, on a shelf."""

    def __init__(self, shelf: Shelf) -> None:
        """Keep the shelf."""
        self._shelf = shelf

    def put(self, run: UUID, shard: WrittenShard) -> str:
        """Write a shard; return its key.

        Raises:
            TransientError: If it can't be written.
        """
        content = packed(shard)
        key = f"{FOLDER}/{run}/{digest_of(content)}"
        self._shelf.write(key, content)
        return key

    def shard(self, key: str) -> WrittenShard:
        """Return the shard under a key.

        Raises:
            JobError: If there is none; the message says what to set.
            TransientError: If the storage can't be read.
        """
        if not re.fullmatch(KEY, key):
            raise JobError(f"shard: {key[:200]!r} is no key of a shard; runs of this deployment are made by dispatch.")
        content = self._shelf.read(key)
        if content is None or digest_of(content) != key.rpartition("/")[2]:
            raise JobError(
                f"There is no such shard in {self.named}, the result storage of this deployment's runs. Either the run "
                "that wrote it has ended, or it has another result storage: have both use one storage that both can "
                "reach, such as a bucket: PREFECT_DEFAULT_RESULT_STORAGE_BLOCK of the worker (or of its work pool's "
                "environment) names it as that of the run does."
            )
        if (found := unpacked(content, WrittenShard)) is None:
            raise JobError("The run that wrote this shard has another version of prefect-dispatch than the worker.")
        return found

    def answer(self, key: str, result: WrittenResult) -> None:
        """Write what came of the shard under a key.

        Raises:
            TransientError: If it can't be written.
        """
        self._shelf.write(key + CAME, packed(result))

    def result(self, key: str) -> WrittenResult | None:
        """Return what came of the shard under a key; None if that isn't there, or isn't what it should be.

        Raises:
            TransientError: If the storage can't be read.
        """
        found = unpacked(self._shelf.read(key + CAME), WrittenResult)
        return found if found is not None and found.shard == key.rpartition("/")[2] else None

    def remove(self, key: str) -> None:
        """Take away the shard under a key, and what came of it.

        Raises:
            TransientError: If that can't be done.
        """
        self._shelf.remove(key)
        self._shelf.remove(key + CAME)
        if self._shelf.folder:
            with suppress(OSError):  # others of its run are still there
                (self._shelf.folder / key).parent.rmdir()

    def tidy(self) -> None:
        """Take away what runs have left that died long ago; a storage elsewhere has rules of its own for that."""
        if self._shelf.folder is None:
            return
        for old in (self._shelf.folder / FOLDER).glob("*"):
            with suppress(OSError):  # another run tidies, too
                if time.time() - old.stat().st_mtime > OLD_S:
                    shutil.rmtree(old)

    @property
    def named(self) -> str:
        """What the storage is, in words that hold no secret."""
        kind = type(self._shelf.storage).__name__
        return f"{self._shelf.folder} (on this machine)" if self._shelf.folder else f"a {kind}"
