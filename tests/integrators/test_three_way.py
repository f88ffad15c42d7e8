"""Two changes of one tree made into one, held against what git itself makes of them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefect_dispatch.errors import DispatchError
from prefect_dispatch.integrators.merge_branches.three_way import merge_trees
from tests.integrators.repos import WHO, Files, files_at, repository, tree

PATHS = ("a.py", "b.py", "lib/c.py", "lib/d.py")
LINES = st.lists(st.sampled_from("abcd"), max_size=6)
ORDERED = st.sets(st.sampled_from("abcdefgh"), max_size=6).map(sorted)
"""Lines of which no two are equal and no two change places, so that every diff algorithm pairs the same ones."""
MODES = st.sampled_from(("100644", "100644", "100644", "100755"))
BINARY = st.integers(0, 3).map(lambda number: f"\0{number}".encode())


@st.composite
def trees(draw: st.DrawFn, lines: st.SearchStrategy[list[str]]) -> tuple[Files, Files, Files]:
    """Draw a base and two changes of it; no two paths have a line in common, so that git sees no renamed file."""
    base: Files = {}
    for path in draw(st.sets(st.sampled_from(PATHS))):
        base[path] = ("100644", _text(path, draw(lines)))
    one, other = dict(base), dict(base)
    for side in (one, other):
        for path in draw(st.sets(st.sampled_from(PATHS), min_size=1)):
            if draw(st.integers(0, 4)) == 0:
                side.pop(path, None)
            else:
                content = draw(BINARY) if draw(st.integers(0, 9)) == 0 else _text(path, draw(lines))
                side[path] = (draw(MODES), content)
    return base, one, other


def _text(path: str, lines: list[str]) -> bytes:
    return "".join(f"{path} {line}\n" for line in lines).encode()


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(drawn=trees(ORDERED))
def test_it_is_what_git_makes_of_the_same(drawn: tuple[Files, Files, Files]) -> None:
    """A clean merge is git's, tree for tree; and what git can't merge, isn't merged here."""
    with TemporaryDirectory() as folder:
        git, _ = repository(Path(folder), {})
        base, one, other = (tree(git, files) for files in drawn)
        root = git.output("commit-tree", base, stdin=b"base", env=WHO)
        ours, theirs = (git.output("commit-tree", each, "-p", root, stdin=b"x", env=WHO) for each in (one, other))
        code, said = git.run("merge-tree", "--write-tree", "-z", "--name-only", "--no-messages", ours, theirs)
        made, *names = said.decode().split("\0")
        found = merge_trees(git, base, one, other)
        assert [each.path for each in found.conflicts] == [name for name in names if name]
        assert bool(found.conflicts) == bool(code)
        if not code:
            assert found.tree == made
        assert merge_trees(git, base, one, other) == found
        assert merge_trees(git, base, one, one).tree == one


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
# Myers' diff merges these, and the histogram diff doesn't: they pair different ones of the lines `c`.
@example(lines=(list("bcc"), list("accbc"), list("accc")))
@given(lines=st.tuples(LINES, LINES, LINES))
def test_repeated_lines_are_merged_as_git_does_with_the_diff_of_myers(lines: tuple[list[str], ...]) -> None:
    """Which of several equal lines belong together, and so what is a conflict, depends on the diff algorithm.

    `git merge-file` has Myers' diff alone before git 2.44, and `git merge-tree` always takes the histogram diff: it has
    conflicts where `merge_trees` has none, and the other way round. The strategy `recursive` can be given Myers' diff.
    """
    with TemporaryDirectory() as folder:
        git, _ = repository(Path(folder), {})
        base, ours, theirs = (tree(git, {"a.py": _text("a.py", each)}) for each in lines)
        git.output("read-tree", "--reset", "-u", ours)
        code, _ = git.run("merge-recursive", "--no-renames", "--diff-algorithm=myers", base, "--", ours, theirs)
        found = merge_trees(git, base, ours, theirs)
        assert bool(found.conflicts) == bool(code)
        if not code:
            assert found.tree == git.output("write-tree")
            assert merge_trees(git, base, theirs, ours).tree == found.tree


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(drawn=trees(ORDERED))
def test_a_conflict_goes_by_the_first_and_costs_nothing_else(drawn: tuple[Files, Files, Files]) -> None:
    """Merged again, nothing changes; where nothing contradicts, the order of the two doesn't count either.

    The first doesn't hold where lines repeat, as in git: `a` changed to `a a a` and to `d a` becomes `d a a a`, and
    that merged with `a a a` again becomes `d a a a a a`, as Myers' diff takes another `a` for the old one.
    """
    with TemporaryDirectory() as folder:
        git, _ = repository(Path(folder), {})
        base, one, other = (tree(git, files) for files in drawn)
        found = merge_trees(git, base, one, other)
        assert merge_trees(git, base, found.tree, one).tree == found.tree
        if not found.conflicts:
            assert merge_trees(git, base, other, one).tree == found.tree
            assert merge_trees(git, base, found.tree, other).tree == found.tree
        for each in found.conflicts:
            assert each.ours != each.theirs
            assert each.result or each.ours is None


TEXT = "1\n2\n3\n4\n5\n6\n7\n8\n9\n"
LINK = ("120000", b"elsewhere")


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "kinds", "result"),
    [
        pytest.param(
            {"a": TEXT},
            {"a": TEXT.replace("2", "two")},
            {"a": TEXT.replace("2", "zwei").replace("9", "neun")},
            {"a": "lines"},
            {"a": TEXT.replace("2", "two").replace("9", "neun")},
            id="lines",
        ),
        pytest.param({"a": TEXT}, {"a": TEXT + "x"}, {}, {"a": "modify/delete"}, {"a": TEXT + "x"}, id="they-delete"),
        pytest.param({"a": TEXT}, {}, {"a": TEXT + "x"}, {"a": "modify/delete"}, {}, id="we-delete"),
        pytest.param(
            {"a": TEXT},
            {"moved": TEXT},
            {"a": TEXT + "x", "n": "new"},
            {"a": "modify/delete"},
            {"moved": TEXT, "n": "new"},
            id="rename",
        ),
        pytest.param({"a": b"\0a"}, {"a": b"\0b"}, {"a": b"\0c"}, {"a": "binary"}, {"a": b"\0b"}, id="binary"),
        pytest.param({}, {"a": "one\n"}, {"a": "two\n"}, {"a": "add/add"}, {"a": "one\n"}, id="both-add"),
        pytest.param({}, {"a": ""}, {"a": "two\n"}, {}, {"a": "two\n"}, id="one-adds-it-empty"),
        pytest.param({}, {"a": "x"}, {"a": ("100755", b"x")}, {"a": "mode"}, {"a": "x"}, id="both-add-in-another-mode"),
        pytest.param(
            {}, {"a": ""}, {"a": ("100755", b"x")}, {"a": "mode"}, {"a": ""}, id="both-add-in-another-mode-one-empty"
        ),
        pytest.param(
            {"a": TEXT},
            {"a": ("100755", TEXT.encode())},
            {"a": TEXT + "x"},
            {},
            {"a": ("100755", (TEXT + "x").encode())},
            id="mode-and-lines",
        ),
        pytest.param(
            {"a": TEXT},
            {"a": TEXT + "x"},
            {"a": ("100755", TEXT.encode())},
            {},
            {"a": ("100755", (TEXT + "x").encode())},
            id="lines-and-mode",
        ),
        pytest.param({"a": TEXT}, {"a": TEXT + "x"}, {"a": LINK}, {"a": "type"}, {"a": TEXT + "x"}, id="link"),
        pytest.param({"a": LINK}, {"a": ("120000", b"b")}, {"a": ("120000", b"c")}, {"a": "type"}, None, id="links"),
        pytest.param(
            {}, {"a": "file"}, {"a/b": "in it", "n": ""}, {"a/b": "file/folder"}, {"a": "file", "n": ""}, id="our-file"
        ),
        pytest.param(
            {},
            {"a/b": "in it"},
            {"a": "file", "n": ""},
            {"a": "file/folder"},
            {"a/b": "in it", "n": ""},
            id="folder",
        ),
        pytest.param(
            {"d/a": "1", "d/b": "2"},
            {"d/a": "one", "d/b": "2"},
            {"d": "file"},
            {"d": "file/folder", "d/a": "modify/delete"},
            {"d/a": "one"},
            id="folder-becomes-a-file",
        ),
    ],
)
def test_what_contradicts_and_who_wins(
    tmp_path: Path, base: Files, ours: Files, theirs: Files, kinds: dict[str, str], result: Files | None
) -> None:
    """Every kind of conflict is found, and goes by the change that comes first."""
    git, _ = repository(tmp_path, {})
    made = merge_trees(git, *(tree(git, files) for files in (base, ours, theirs)))
    assert {each.path: each.kind for each in made.conflicts} == kinds
    assert made.tree == tree(git, ours if result is None else result)


def test_names_may_be_any_bytes(tmp_path: Path) -> None:
    """A name that is no UTF-8, a line break in a name, a name that looks like an option: all are names."""
    names = [b"caf\xe9".decode("utf-8", "surrogateescape"), "two\nlines", "-rf", ":(glob)*", '"quoted"']
    git, _ = repository(tmp_path, {})
    base: Files = dict.fromkeys(names, TEXT)
    ours: Files = dict.fromkeys(names, TEXT.replace("2", "two"))
    theirs: Files = dict.fromkeys(names, TEXT.replace("9", "neun"))
    made = merge_trees(git, *(tree(git, files) for files in (base, ours, theirs)))
    assert made.conflicts == ()
    assert set(files_at(git, made.tree)) == set(names)
    assert made.tree == tree(git, dict.fromkeys(names, TEXT.replace("2", "two").replace("9", "neun")))


def test_a_submodule_is_refused(tmp_path: Path) -> None:
    """It is a commit of another repository, of which nobody here knows anything."""
    git, commit = repository(tmp_path, {"a": "1"})
    base = git.output("rev-parse", f"{commit}^{{tree}}")
    listed = git.output_bytes("ls-tree", "-z", base) + f"160000 commit {commit}\tsub\0".encode()
    theirs = git.output("mktree", "-z", stdin=listed)
    with pytest.raises(DispatchError, match="'sub' is a submodule, which can't be merged"):
        merge_trees(git, base, base, theirs)


def test_attributes_and_settings_of_the_repository_do_not_count(tmp_path: Path) -> None:
    """What is checked out there, and what its settings say, changes nothing about a merge."""
    git, _ = repository(tmp_path, {".gitattributes": "* -merge -diff\n"})
    git.output("config", "merge.conflictStyle", "merge")
    git.output("config", "merge.default", "union")
    base, ours, theirs = (tree(git, {"a": TEXT.replace(*pair)}) for pair in (("x", "x"), ("2", "two"), ("9", "neun")))
    made = merge_trees(git, base, ours, theirs)
    assert made.tree == tree(git, {"a": TEXT.replace("2", "two").replace("9", "neun")})
