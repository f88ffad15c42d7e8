"""A lake of Parquet files: a partitioned folder goes in, a file of results comes out, wherever fsspec can go.

Run:
    python examples/lake.py

`memory://` stands for `s3://`, `gs://` or `abfs://` here: their file systems (`pip install s3fs`) find their
credentials in the environment. The results are in Prefect's lineage as an asset under their URL.
"""

from __future__ import annotations

from typing import Any

import fsspec  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs] -- it has no types
import polars as pl
from prefect import flow

from prefect_dispatch import Brief, Executor, dispatch, write_parquet
from prefect_dispatch.testing import ScriptedExecutor

LAKE = "memory://lake"
MOOD = Brief(
    name="mood",
    scope="One review of a product.",
    instructions="Say in a word how the customer feels.",
    output={"type": "object", "properties": {"mood": {"enum": ["happy", "cross"]}}, "required": ["mood"]},
)


@flow
def moods(lake: str = LAKE, executor: Executor | None = None) -> str:
    """Read every review in a lake, and write down how its customer feels.

    Args:
        lake: The URL of a folder with a folder `reviews` in it.
        executor: Who is asked. None: the model of the settings, else the local one.

    Returns:
        The URL of the results.
    """
    report = dispatch([MOOD], {"parquet": f"{lake}/reviews/", "key": "id"}, executor=executor)
    return write_parquet(report, f"{lake}/moods.parquet")


def fill(files: Any) -> None:  # noqa: ANN401 -- a file system of fsspec
    """Put three reviews of two days into a lake."""
    for day, rows in {1: {"id": ["a", "b"], "text": ["Great!", "Broken"]}, 2: {"id": ["c"], "text": ["Great"]}}.items():
        with files.open(f"{LAKE}/reviews/day={day}/part.parquet", "wb") as file:
            pl.DataFrame(rows).write_parquet(file)


if __name__ == "__main__":
    memory: Any = fsspec.filesystem("memory")  # pyright: ignore[reportUnknownMemberType]
    fill(memory)
    agent = ScriptedExecutor(lambda ask: {"mood": "happy" if "Great" in str(ask.item.value) else "cross"})
    with memory.open(moods(LAKE, agent), "rb") as written:
        print(pl.read_parquet(written).select("item", "status", "answer.mood").rows())
