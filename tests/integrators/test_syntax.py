"""What lines don't show: a name that both sides define, changes that are near each other, a merge by syntax trees."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.merge_branches.syntax import (
    MAX_BYTES,
    describe_syntax_merge,
    find_double_definitions,
    merge_by_syntax,
)
from tests.integrators.repos import Nobody, change_of, done, files_at, merging, repository, rows, value

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.workspaces.git import Git

LINES = [f"line {number}\n" for number in range(20)]


@pytest.mark.parametrize(
    ("path", "base", "ours", "theirs", "merged", "names"),
    [
        pytest.param("a.toml", "a = 1\n", "z = 7\na = 1\n", "a = 1\nz = 9\n", "z = 7\na = 1\nz = 9\n", ["z"], id="key"),
        pytest.param("a.yml", "a: 1\n", "z: 7\na: 1\n", "a: 1\nz: 9\n", "z: 7\na: 1\nz: 9\n", ["z"], id="yaml"),
        pytest.param(
            "a.json", "{\n}\n", '{\n  "k": 1,\n}\n', '{\n  "k": 2\n}\n', '{\n  "k": 1,\n  "k": 2\n}\n', ["k"], id="json"
        ),
        pytest.param(
            "A.java",
            "",
            "class A {\n}\n",
            "class A {\n  int b;\n}\n",
            "class A {\n}\nclass A {\n  int b;\n}\n",
            ["A"],
            id="class",
        ),
        pytest.param("a.go", "", "x := 1\n", "x := 2\n", "x := 1\n\nx := 2\n", ["x"], id="go"),
        pytest.param(
            "a.py",
            "",
            "def f():\n    x = 1\n",
            "def g():\n    x = 2\n",
            "def f():\n    x = 1\ndef g():\n    x = 2\n",
            [],
            id="other-scope",
        ),
        pytest.param("a.toml", "", "[a]\nx = 1\n", "[b]\nx = 1\n", "[a]\nx = 1\n[b]\nx = 1\n", [], id="other-section"),
        pytest.param("a.toml", "", "[a]\nx = 1\n", "[a]\ny = 1\n", "[a]\nx = 1\n[a]\ny = 1\n", ["a"], id="section"),
        pytest.param("a.py", "", "x = 1\n", "x = 1\n", "x = 1\n", [], id="the-same"),
        pytest.param(
            "a.py", "x = 0\n", "x = 0\nx = 1\n", "x = 2\nx = 0\n", "x = 2\nx = 0\nx = 1\n", [], id="was-there"
        ),
        pytest.param(
            "a.py",
            "",
            "if a == b:\nelse:\n",
            "for a in b:\nelse:\n",
            "if a == b:\nelse:\nfor a in b:\nelse:\n",
            [],
            id="statements",
        ),
        pytest.param("a.md", "", "Note: one\n", "Note: two\n", "Note: one\n\nNote: two\n", [], id="prose"),
        pytest.param("a.py", "", "x = 1\n", "x = 2\n", "x = 1\nx = 2\n" + "#" * MAX_BYTES, [], id="large"),
    ],
)
def test_names_that_both_sides_define_are_found(
    path: str, base: str, ours: str, theirs: str, merged: str, names: list[str]
) -> None:
    """Only what neither the base has nor one side alone has twice, in one scope, and in no prose."""
    texts = (each.encode() for each in (base, ours, theirs, merged))
    assert find_double_definitions(path, *texts) == names


def merged(git: Git, base: str, path: str, one: str, other: str, **options: object) -> tuple[Merge, list[Outcome]]:
    """Merge two changes of one file."""
    outcomes = [done(name, change_of(git, base, {path: text})) for name, text in (("one", one), ("two", other))]
    by = merging(git, **options)
    merge = by.merge_asking([], outcomes, Nobody())
    assert audit(merge, outcomes, [], by, again=lambda again: by.merge_asking([], again, Nobody())) == ()
    return merge, outcomes


def test_a_name_that_both_define_is_flagged(tmp_path: Path) -> None:
    """The file stays as git merges it, and a reader is told where to look."""
    git, base = repository(tmp_path, {"a.toml": "a = 1\nb = 2\n"})
    merge, _ = merged(git, base, "a.toml", "z = 7\na = 1\nb = 2\n", "a = 1\nb = 2\nz = 9\n")
    assert files_at(git, value(merge)["commit"])["a.toml"] == b"z = 7\na = 1\nb = 2\nz = 9\n"
    flags = {flag.kind: flag for flag in merge.flags}
    assert flags["same_name"].message == "two/repo and one/repo both define 'z' here, and no lines conflict."
    assert (flags["same_name"].path, [ref.brief for ref in flags["same_name"].sources]) == ("/files/0", ["one", "two"])
    assert flags["near_lines"].message.endswith("change lines that are at most 3 apart; read them together.")
    assert rows(merge, "conflicts") == []


def test_changes_far_from_each_other_are_not_flagged(tmp_path: Path) -> None:
    """A gap of more than three lines is no doubt."""
    git, base = repository(tmp_path, {"a.txt": "".join(LINES)})
    one, other = (LINES.copy() for _ in range(2))
    one[2], other[16] = "changed\n", "changed, too\n"
    merge, _ = merged(git, base, "a.txt", "".join(one), "".join(other))
    assert merge.flags == ()


@pytest.fixture
def mergiraf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, which takes mergiraf's options and does what the text of one side says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "mergiraf"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, pathlib, sys\n"
        "if sys.argv[1] == '--version':\n"
        "    print('mergiraf 0.0.1-stub')\n"
        "    sys.exit()\n"
        "command, base, ours, theirs, name, limit, *labels = sys.argv[1:]\n"
        "assert (command, limit) == ('merge', '--timeout=0') and name.startswith('--path-name=')\n"
        "assert labels == ['-s', 'base', '-x', 'ours', '-y', 'theirs'] and os.environ['HOME'] == os.getcwd()\n"
        "text = pathlib.Path(theirs).read_text()\n"
        "if 'crash' in text:\n"
        "    sys.exit(255)\n"
        "if 'marker' in text:\n"
        "    print('<<<<<<< ours')\n"
        "    sys.exit()\n"
        "print(pathlib.Path(ours).read_text() + text, end='')\n"
        "sys.exit('conflict' in text)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return program


@pytest.mark.usefixtures("mergiraf")
def test_a_conflict_of_lines_may_be_none_of_syntax(tmp_path: Path) -> None:
    """The program's merge is taken, named as the rule, and flagged; what it can't merge stays a conflict."""
    folder = tmp_path / "repo"
    folder.mkdir()
    git, base = repository(folder, {"a.py": "a\n", "b.py": "b\n"})
    outcomes = [
        done("one", change_of(git, base, {"a.py": "one\n", "b.py": "one\n"})),
        done("two", change_of(git, base, {"a.py": "two\n", "b.py": "conflict\n"})),
    ]
    by = merging(git)
    merge = by.merge_asking([], outcomes, Nobody())
    assert audit(merge, outcomes, [], by, again=lambda again: by.merge_asking([], again, Nobody())) == ()
    assert files_at(git, value(merge)["commit"]) == {"a.py": b"one\ntwo\n", "b.py": b"one\n"}
    assert [(flag.path, flag.kind) for flag in merge.flags] == [
        ("/files/1", "conflict"),
        ("/files/0", "merged_by_syntax"),
    ]
    assert merge.flags[1].message == (
        "Lines of two/repo and one/repo conflict here; mergiraf merged them by their syntax."
    )
    assert [row.rule for row in merge.fields if row.path == "/files/0"] == ["merge_branches:syntax"]
    assert "mergiraf 0.0.1-stub" in merge.rules


@pytest.mark.usefixtures("mergiraf")
def test_a_conflict_of_syntax_without_one_of_lines_is_flagged(tmp_path: Path) -> None:
    """The file stays as git merges it."""
    folder = tmp_path / "repo"
    folder.mkdir()
    git, base = repository(folder, {"a.py": "".join(LINES)})
    merge, _ = merged(git, base, "a.py", "".join(["first\n", *LINES]), "".join([*LINES, "conflict\n"]))
    assert [flag.kind for flag in merge.flags] == ["syntax"]
    assert files_at(git, value(merge)["commit"])["a.py"].startswith(b"first\n")


@pytest.mark.parametrize("theirs", ["crash", "marker"])
def test_a_program_that_fails_changes_nothing(theirs: str, mergiraf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It crashes, can't be run, or leaves a marker: lines decide, as without it."""
    versions = {"base": b"a", "ours": b"b", "theirs": theirs.encode()}
    found = merge_by_syntax("a.py", versions)
    assert found is None if theirs == "crash" else found is not None and found.text is None
    mergiraf.write_text("no program")
    assert merge_by_syntax("a.py", {**versions, "base": b"c"}) is None
    assert describe_syntax_merge()
    monkeypatch.setenv("PATH", "/nowhere")
    assert merge_by_syntax("a.py", versions) is None
    assert describe_syntax_merge() == ""
