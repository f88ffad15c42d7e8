"""Parquet in folders and by URL: nothing of a lake is lost, and what can't be opened is told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from prefect_dispatch.errors import SourceError
from prefect_dispatch.sources import read_items, source
from prefect_dispatch.sources.tabular import Parquet

if TYPE_CHECKING:
    from collections.abc import Mapping


def written(folder: Path, name: str, columns: Mapping[str, Any]) -> None:
    """Write a Parquet file."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table(dict(columns)), folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A lake of two days, in the second of which there is one more column."""
    written(tmp_path, "lake/day=1/a.parquet", {"id": ["x", "y"], "n": [1, 2]})
    written(tmp_path, "lake/day=2/a.parquet", {"id": ["z"], "n": [3], "late": [1.5]})
    (tmp_path / "lake" / "_SUCCESS").touch()
    return tmp_path


ROWS = [
    {"id": "x", "n": 1, "day": 1, "late": None},
    {"id": "y", "n": 2, "day": 1, "late": None},
    {"id": "z", "n": 3, "day": 2, "late": 1.5},
]


def test_a_partitioned_folder_is_read_whole(folder: Path) -> None:
    """Names of folders become columns, and a column of later files is not lost."""
    items = read_items(source({"parquet": "lake", "key": "id"}), folder)
    assert [item.value for item in items] == ROWS


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_url_is_opened_by_fsspec(folder: Path, scheme: str) -> None:
    """The same rows by a URL, of a folder and of one file."""
    fsspec = pytest.importorskip("fsspec")
    place = f"memory://{uuid4().hex}" if scheme == "memory" else f"file://{folder}"
    if scheme == "memory":
        for path in folder.rglob("*.parquet"):
            fsspec.filesystem("memory").pipe(f"{place}/{path.relative_to(folder)}", path.read_bytes())
    items = read_items(Parquet(parquet=f"{place}/lake", key="id"), Path("elsewhere"))
    assert [item.value for item in items] == ROWS
    (one,) = read_items(Parquet(parquet=f"{place}/lake/day=2/a.parquet", key="id"), Path("elsewhere"))
    assert one.key == "z"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        pytest.param("memory://nothing/here.parquet", "can't be opened: FileNotFoundError: ", id="missing"),
        pytest.param("nope://lake", "can't be opened: Protocol not known: nope", id="protocol"),
        pytest.param("gdrive://lake", "needs a package that isn't installed: .*gdrive", id="package"),
        pytest.param("broken", "can't be opened: .*a.parquet", id="no-parquet"),
        pytest.param("lake", "no column 'key'; known are 'id', 'n', 'day', 'late'", id="key"),
        pytest.param("mixed", "can't be opened: .*n", id="types"),
    ],
)
def test_what_cannot_be_opened_is_told(folder: Path, path: str, why: str) -> None:
    """In a sentence that names the place, whatever the storage raises."""
    (folder / "broken").mkdir()
    (folder / "broken" / "a.parquet").write_text("a,b")
    written(folder, "mixed/a.parquet", {"n": [1]})
    written(folder, "mixed/b.parquet", {"n": ["text"]})
    with pytest.raises(SourceError, match=rf"Parquet .*{path.partition(':')[0]}.*{why}"):
        read_items(Parquet(parquet=path, key="key"), folder)


def test_files_may_be_empty_and_a_folder_may_not(folder: Path) -> None:
    """Files without a row are there; a folder without a file looks like a misspelt one."""
    written(folder, "none/day=1/a.parquet", {"id": []})
    written(folder, "one.parquet", {"id": []})
    assert read_items(Parquet(parquet="none", key="id"), folder) == []
    assert read_items(Parquet(parquet="one.parquet", key="id"), folder) == []
    (folder / "hollow").mkdir()
    with pytest.raises(SourceError, match=r"There are no items: Parquet file '.*/hollow' has no Parquet file in it\."):
        read_items(Parquet(parquet="hollow", key="id"), folder)


def test_the_row_of_a_folder_is_told(folder: Path) -> None:
    """By its file."""
    written(folder, "lake/day=3/b.parquet", {"id": ["q", "r"], "n": [1, 2], "late": [0.5, float("nan")]})
    with pytest.raises(SourceError, match=r"day=3/b.parquet', row 2: column 'late' has no form in JSON: nan"):
        read_items(Parquet(parquet="lake", key="id"), folder)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        pytest.param("https://me:hunter2@example.org/x.parquet", "a URL with a password", id="password"),
        pytest.param("https://[x.parquet", "it is no URL", id="broken"),
    ],
)
def test_a_url_holds_no_password(url: str, why: str) -> None:
    """A job is kept in plain text."""
    with pytest.raises(SourceError, match=why) as caught:
        source({"parquet": url})
    assert "hunter2" not in str(caught.value)
