"""What people decided: read, put together, written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.decisions import Choice, Decisions, load_decisions, save_decisions
from prefect_dispatch.errors import JobError

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.decisions import Identity

MIT: Identity = {"name": "MIT"}
EXPAT: Identity = {"name": "Expat"}
ZLIB: Identity = {"name": "zlib"}


def test_the_later_decision_counts() -> None:
    """On one pair, whichever way round, and on one field, the later word stands in for the earlier."""
    early = Decisions(same=((MIT, EXPAT), (MIT, ZLIB)), fields=(Choice(record=MIT, field="year", value=1987),))
    late = Decisions(different=((EXPAT, MIT),), fields=(Choice(record=MIT, field="year", value=1988),))
    both = early.plus(late)
    assert both == Decisions(same=((MIT, ZLIB),), different=((EXPAT, MIT),), fields=late.fields)
    assert both.plus(late) == both
    assert both.plus(Decisions(same=((MIT, EXPAT),))).different == ()


def test_decisions_have_one_order() -> None:
    """The file is the same, in whatever order decisions were taken."""
    one, other = Decisions(same=((MIT, EXPAT),)), Decisions(same=((MIT, ZLIB),))
    assert one.plus(other) == other.plus(one)


def test_a_file_reads_back(tmp_path: Path) -> None:
    """What was written is read again; where there is no file yet, nothing was decided."""
    path = tmp_path / "decisions.yaml"
    assert load_decisions(path) == Decisions()
    made = Decisions(same=((MIT, EXPAT),), fields=(Choice(record=ZLIB, field="a.b", value={"é": [1]}),))
    save_decisions(path, made)
    assert load_decisions(path) == made
    assert [file.name for file in tmp_path.iterdir()] == ["decisions.yaml"]
    path.write_text("")
    assert load_decisions(path) == Decisions()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("- 1", "no mapping of 'same', 'different' and 'fields'", id="a-list"),
        pytest.param("same: [[{name: MIT}]]", "no mapping of", id="half-a-pair"),
        pytest.param("sane: []", "no mapping of .*same", id="misspelt"),
        pytest.param("a: [", "not YAML", id="broken"),
        pytest.param("same: 2024-13-45", "not YAML", id="no-such-date"),
        pytest.param(b"\xff\xfe\xfa", "not YAML", id="binary"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: Any, message: str) -> None:  # noqa: ANN401 -- text or bytes
    """A file that holds something else is named, with what is wrong."""
    path = tmp_path / "decisions.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(JobError, match=message):
        load_decisions(path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """What can't be read is refused, with the reason."""
    with pytest.raises(JobError, match="can't be read: Is a directory"):
        load_decisions(tmp_path)
