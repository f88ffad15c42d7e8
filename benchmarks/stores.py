"""Compares ways to store answers: one file each, as this package does, databases, and segments of many answers.

Each way writes records of the size of a short answer, durably and in order of arrival, and then looks each of them up
by key in another order.
"""

from __future__ import annotations

import random
import sqlite3
import time
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ITEMS = 10_000
SIZE = 900
"""Size of a record in bytes, that of an answer of a few words."""
TOGETHER = 100
"""Records per transaction where a way writes several together, as after a hundred calls that end at once."""
SEGMENT = 1000
"""Records per segment."""

Record = tuple[str, bytes]


def files(folder: Path, records: Sequence[Record]) -> Callable[[str], bytes | None]:
    """Write one file per record, as this package does: to a temporary file, synced, then renamed."""
    from prefect.filesystems import LocalFileSystem  # noqa: PLC0415 -- each way loads what it takes, and nothing else

    from prefect_dispatch.tasks.result_store import BlobStore  # noqa: PLC0415 -- as above

    shelf = BlobStore(LocalFileSystem(basepath=str(folder)))
    for key, content in records:
        shelf.write(key, content)
    return shelf.load


def sqlite_each(folder: Path, records: Sequence[Record]) -> Callable[[str], bytes | None]:
    """Write each record in its own SQLite transaction."""
    return _sqlite(folder, ([record] for record in records))


def sqlite_together(folder: Path, records: Sequence[Record]) -> Callable[[str], bytes | None]:
    """Write a hundred records per SQLite transaction."""
    return _sqlite(folder, _parts(records, TOGETHER))


def lmdb_each(folder: Path, records: Sequence[Record]) -> Callable[[str], bytes | None]:
    """Write each record in its own LMDB transaction."""
    return _lmdb(folder, ([record] for record in records))


def lmdb_together(folder: Path, records: Sequence[Record]) -> Callable[[str], bytes | None]:
    """Write a hundred records per LMDB transaction."""
    return _lmdb(folder, _parts(records, TOGETHER))


def parquet_segments(folder: Path, records: Sequence[Record]) -> Callable[[str], bytes | None]:
    """Write a Parquet file per thousand records; reading builds an index in memory."""
    import pyarrow as pa  # noqa: PLC0415 -- as above

    parquet: Any = import_module("pyarrow.parquet")  # whose types are partly unknown
    for at, part in enumerate(_parts(records, SEGMENT)):
        table = pa.table({"key": [key for key, _ in part], "content": [content for _, content in part]})
        parquet.write_table(table, folder / f"{at}.parquet", compression="zstd")
    found: dict[str, bytes] = {}
    for segment in folder.glob("*.parquet"):
        columns: dict[str, list[Any]] = parquet.read_table(segment).to_pydict()
        found.update(zip(columns["key"], columns["content"], strict=True))
    return found.get


def _sqlite(folder: Path, parts: Iterator[Sequence[Record]]) -> Callable[[str], bytes | None]:
    database = sqlite3.connect(folder / "store.sqlite", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, content BLOB) WITHOUT ROWID")
    for part in parts:
        database.execute("BEGIN")
        database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", part)
        database.execute("COMMIT")

    def read(key: str) -> bytes | None:
        found = database.execute("SELECT content FROM answers WHERE key = ?", (key,)).fetchone()
        return bytes(found[0]) if found else None

    return read


def _lmdb(folder: Path, parts: Iterator[Sequence[Record]]) -> Callable[[str], bytes | None]:
    environment: Any = import_module("lmdb").open(str(folder), map_size=2**32)  # which has no types
    for part in parts:
        with environment.begin(write=True) as transaction:
            for key, content in part:
                transaction.put(key.encode(), content)

    def read(key: str) -> bytes | None:
        with environment.begin() as transaction:
            found: bytes | None = transaction.get(key.encode())
            return found

    return read


def _parts(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    return (records[at : at + size] for at in range(0, len(records), size))


WAYS = {
    each.__name__: each for each in (files, sqlite_each, sqlite_together, lmdb_each, lmdb_together, parquet_segments)
}


def measure_store(way: str, items: int = ITEMS) -> dict[str, Any]:
    """Return the cost of a way to write and look up records: milliseconds per record, megabytes, files."""
    draw = random.Random(1)
    records = [(f"prefect-dispatch-{draw.getrandbits(256):064x}", draw.randbytes(SIZE)) for _ in range(items)]
    with TemporaryDirectory(prefix="stores-") as name:
        folder = Path(name)
        began, cpu = time.perf_counter(), time.process_time()
        read = WAYS[way](folder, records)
        wrote, wrote_cpu = time.perf_counter() - began, time.process_time() - cpu
        wanted = draw.sample(records, len(records))
        began = time.perf_counter()
        lost = sum(read(key) != content for key, content in wanted)
        looked = time.perf_counter() - began
        left = [each.stat() for each in folder.rglob("*") if each.is_file()]
    assert not lost  # noqa: S101 -- a store that loses records measures nothing
    return {
        "seconds": round(wrote, 2),
        "write_ms": round(1000 * wrote / items, 3),
        "write_cpu_ms": round(1000 * wrote_cpu / items, 3),
        "read_ms": round(1000 * looked / items, 4),
        "disk_mb": round(sum(each.st_blocks for each in left) * 512 / 1e6, 1),
        "files": len(left),
    }
