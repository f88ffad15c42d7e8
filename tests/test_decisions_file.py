"""The decisions file: read strictly, added to without loss."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.decisions_file import DecisionsFile, FileName
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.decisions import Choice, Decisions

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.models.decisions import Identity

MIT: Identity = {"name": "MIT"}
EXPAT: Identity = {"name": "Expat"}
SAME = Decisions(same=((MIT, EXPAT),))


@pytest.fixture
def file(tmp_path: Path) -> DecisionsFile:
    """A decisions file that isn't there yet, of a merge by name."""
    return DecisionsFile(tmp_path / "decisions.yaml", MergeRecords(identity=("name",)).canonical_identity)


def test_what_was_added_is_read_back(file: DecisionsFile) -> None:
    """Where there is no file yet, nothing was decided; what is known already isn't written again."""
    assert file.load() == Decisions()
    made = Decisions(same=((MIT, EXPAT),), fields=(Choice(record=MIT, field="a.b", value={"é": [1e20, "\u202e"]}),))
    file.add(made)
    assert file.load() == made
    text = file.path.read_text(encoding="utf-8")
    assert "\u202e" not in text
    file.add(SAME)
    assert file.path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("", id="empty"),
        pytest.param("  ", id="blank"),
        pytest.param("# ours\n", id="comment"),
        pytest.param("same: # ours\n- [{name: MIT}, {name: Expat}] # checked\r\n", id="comments-and-line-ends"),
        pytest.param("different: [[{name: a}, {name: b}]]", id="no-line-end"),
        pytest.param('{"same": []}\n...\n', id="json"),
        pytest.param("fields:\n- record: {name: a}\n  field: b\n  value: |\n    long\n    text\n", id="block"),
        pytest.param("\ufeffsame: []\n---\n# nothing\n", id="mark-and-documents"),
    ],
)
def test_what_people_wrote_stays(file: DecisionsFile, before: str) -> None:
    """Comments, order, line ends: a decision is added below, and what was decided before still is."""
    file.path.write_bytes(before.encode())
    known = file.load()
    late = Decisions(different=(({"name": "mit"}, {"name": "Apache"}),))
    assert file.add(late) == Decisions()
    assert file.path.read_bytes().decode().startswith(before.strip().removeprefix("\ufeff"))
    assert file.load() == known.combine(late, normalize=file.normalize)


def test_the_first_decision_counts(file: DecisionsFile) -> None:
    """What is decided already is not decided otherwise, however it is spelt, and is returned; the rest is added."""
    year = Choice(record=MIT, field="year", value=1987)
    file.add(Decisions(same=SAME.same, fields=(year,)))
    other = Decisions(
        different=(({"name": "expat"}, {"name": "mit"}), (MIT, {"name": "BSD"})),
        fields=(Choice(record={"name": "mit"}, field="year", value=1988), Choice(record=MIT, field="by", value="MIT")),
    )
    refused = file.add(other)
    assert refused == Decisions(different=other.different[:1], fields=other.fields[:1])
    kept = file.load()
    assert (kept.same, kept.different) == (SAME.same, other.different[1:])
    assert {(each.field, each.value) for each in kept.fields} == {("year", 1987), ("by", "MIT")}
    text = file.path.read_text(encoding="utf-8")
    assert file.add(Decisions(different=(({"name": "Expat"}, MIT),))) == Decisions(
        different=(({"name": "Expat"}, MIT),)
    )
    assert file.path.read_text(encoding="utf-8") == text


def test_who_may_read_it_and_where_it_is_stay(file: DecisionsFile) -> None:
    """A file that is shared with a group stays so, and one that is kept elsewhere is added to there."""
    target = file.path.with_name("kept-elsewhere.yaml")
    target.write_text("same: []\n")
    target.chmod(0o660)
    file.path.symlink_to(target)
    file.add(SAME)
    assert file.path.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o660
    assert DecisionsFile(target).load() == SAME


def test_nobody_who_adds_at_the_same_time_loses_anything(file: DecisionsFile) -> None:
    """Ten at once: the file holds what all of them decided."""
    start = threading.Barrier(10)

    def add(at: int) -> None:
        start.wait()
        file.add(Decisions(same=((MIT, {"name": str(at)}),)))

    threads = [threading.Thread(target=add, args=(at,)) for at in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(file.load().same) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("- 1", "is not a mapping of 'same', 'different' and 'fields'", id="a-list"),
        pytest.param(
            "same: [[{name: MIT}]]",
            r"mapping of .*: line 1: same\[0\]: an entry is missing; it has 1",
            id="half-a-pair",
        ),
        pytest.param("sane: []", "unknown key 'sane'; did you mean 'same'", id="misspelt"),
        pytest.param("a: [", "can't be used: line 1: ", id="broken"),
        pytest.param(
            b"\xff\xfe\xfa", "can't be read: it begins with the byte order mark of UTF-16, but is not", id="binary"
        ),
        pytest.param("same: []\nsame: []", "line 2: the key 'same' stands twice; put all of it under one", id="twice"),
        pytest.param("fields: [{record: {name: .nan}}]", ".nan is no number that JSON has", id="nan"),
        pytest.param(f"same: {'9' * 5000}", "the number has too many digits", id="5000-digits"),
        pytest.param(
            "same: [[{name: MIT}, {name: Expat}]]\ndifferent: [[{name: EXPAT}, {name: mit}]]",
            "contradicts itself: .* are under 'same' and under 'different'; keep one",
            id="contradiction",
        ),
        pytest.param('same: [[{"\\e[31m\\nx": 1}, 1]]', r"same\[0\]\[1\]", id="escapes"),
    ],
)
def test_another_file_is_refused(file: DecisionsFile, text: Any, message: str) -> None:  # noqa: ANN401 -- text or bytes
    """A file that holds something else is named, with what is wrong and where; nothing is added to it."""
    file.path.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = file.path.read_bytes()
    with pytest.raises(JobError, match=message) as refused:
        file.load()
    assert str(refused.value).isprintable()
    with pytest.raises(JobError, match=message):
        file.add(SAME)
    assert file.path.read_bytes() == before


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """What can't be read, or written to, is refused, with the reason."""
    with pytest.raises(JobError, match="can't be read: Is a directory"):
        DecisionsFile(tmp_path).load()
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match="can't be written: "):
        DecisionsFile(tmp_path / "file" / "decisions.yaml").add(SAME)


def test_a_name_that_no_file_can_have_is_refused() -> None:
    """It would end in an error of the operating system."""
    named = TypeAdapter[str](FileName)
    assert named.validate_python("a/decisions.yaml") == "a/decisions.yaml"
    with pytest.raises(ValidationError, match="NUL"):
        named.validate_python("a\0b")
