"""Items from files by glob: which files, whose text, and what is refused."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.errors import SourceError
from prefect_dispatch.sources import read_items, source
from prefect_dispatch.sources.files import Glob

if TYPE_CHECKING:
    from pathlib import Path


def write(root: Path, *names: str) -> None:
    """Write files whose text is their name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")


def found(root: Path, *globs: str) -> list[str]:
    """Return the keys of what globs match, the text of each file checked."""
    items = read_items(Glob(glob=globs), root)
    assert all(item.value == item.key.rpartition("/")[2] or item.value == item.key for item in items)
    return [item.key for item in items]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder with files in folders."""
    write(tmp_path, "a.txt", "b.txt", "B.TXT", "c.md", ".hidden.txt", "x/a.txt", "x/y/d.txt", "x/y/e.md", ".git/f.txt")
    return tmp_path


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        pytest.param(["*.txt"], ["a.txt", "b.txt"], id="star"),
        pytest.param(["?.md"], ["c.md"], id="question-mark"),
        pytest.param(["[ab].txt"], ["a.txt", "b.txt"], id="class"),
        pytest.param(["[!a].txt"], ["b.txt"], id="negated-class"),
        pytest.param(["a.txt"], ["a.txt"], id="plain-name"),
        pytest.param(["./x//a.txt"], ["x/a.txt"], id="dots-and-slashes"),
        pytest.param(["**/*.txt"], ["a.txt", "b.txt", "x/a.txt", "x/y/d.txt"], id="any-depth"),
        pytest.param(["x/**/*.txt"], ["x/a.txt", "x/y/d.txt"], id="any-depth-below"),
        pytest.param(["x/**"], ["x/a.txt", "x/y/d.txt", "x/y/e.md"], id="everything-below"),
        pytest.param(["**/y/**/**"], ["x/y/d.txt", "x/y/e.md"], id="several-depths"),
        pytest.param(["*/a.txt"], ["x/a.txt"], id="one-folder"),
        pytest.param(["*"], ["B.TXT", "a.txt", "b.txt", "c.md"], id="folders-are-passed-over"),
        pytest.param([".*"], [".hidden.txt"], id="hidden-asked-for"),
        pytest.param([".git/*"], [".git/f.txt"], id="hidden-folder-asked-for"),
        pytest.param(["*.md", "c.*", "**/*.md"], ["c.md", "x/y/e.md"], id="a-file-matched-twice-is-one-item"),
    ],
)
def test_globs_match_as_in_a_shell(tree: Path, globs: list[str], expected: list[str]) -> None:
    """The key is the path below the folder; the order is that of all lists."""
    assert sorted(found(tree, *globs)) == expected


def test_files_come_in_natural_order(tmp_path: Path) -> None:
    """Numbers in names count by their value."""
    write(tmp_path, "v10.txt", "v9.txt", "v1.txt")
    assert found(tmp_path, "*") == ["v1.txt", "v9.txt", "v10.txt"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("two words.txt", id="space"),
        pytest.param("two\nlines.txt", id="newline"),
        pytest.param("naïve 🙂 日本.txt", id="unicode"),
        pytest.param("[a]*?.txt", id="glob-characters"),
        pytest.param("{{ 7*7 }} $(id) ; rm -rf.txt", id="commands"),
        pytest.param("..txt", id="dots"),
        pytest.param("back\\slash.txt", id="backslash"),
    ],
)
def test_weird_names_are_keys_as_they_are(name: str, tmp_path: Path) -> None:
    """A name is only a name."""
    write(tmp_path, f"in/{name}")
    keys = [item.key for item in read_items(Glob(glob="in/*.txt" if name[0] != "." else "in/.*"), tmp_path)]
    assert keys == [f"in/{name}"]


def test_a_name_with_glob_characters_can_be_asked_for(tmp_path: Path) -> None:
    """Brackets around a character take its meaning away."""
    write(tmp_path, "a*.txt", "ab.txt")
    assert found(tmp_path, "a[*].txt") == ["a*.txt"]


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Bytes that aren't UTF-8 can't be a key in JSON."""
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(SourceError, match=r"File 'caf\\udce9.txt' can't be an item: half of a surrogate pair"):
        read_items(Glob(glob="*"), tmp_path)


def test_root_moves_the_folder_that_globs_and_keys_start_from(
    tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It is relative to the job's folder, or absolute, and may lie outside."""
    below = Glob(glob="**/*.txt", root="x")
    above = Glob(glob="*.txt", root="..")
    elsewhere = Glob(glob="*.md", root=str(tree))
    assert [item.key for item in read_items(below, tree)] == ["a.txt", "y/d.txt"]
    assert [item.key for item in read_items(above, tree / "x")] == ["a.txt", "b.txt"]
    assert [item.key for item in read_items(elsewhere, tmp_path_factory.mktemp("other"))] == ["c.md"]


@pytest.mark.parametrize(
    "glob",
    [
        pytest.param("/etc/*", id="absolute"),
        pytest.param("../*.txt", id="above"),
        pytest.param("x/../../*.txt", id="above-through-below"),
        pytest.param("", id="empty"),
        pytest.param("./", id="the-folder-itself"),
    ],
)
def test_a_glob_that_leaves_its_folder_is_refused(glob: str) -> None:
    """Another folder has to be named as `root`, where one sees it."""
    with pytest.raises(SourceError, match=r"name another folder as `root`|at least 1"):
        source({"glob": glob})
    with pytest.raises(SourceError, match="name another folder as `root`"):
        source({"glob": ["a", glob]})


def test_no_glob_at_all_is_refused() -> None:
    """An empty list of globs can match nothing."""
    with pytest.raises(SourceError, match="at least 1 item"):
        source({"glob": []})


def test_a_link_within_the_folder_is_followed(tree: Path) -> None:
    """Its key is its own path."""
    (tree / "link.txt").symlink_to("x/a.txt")
    (tree / "z").symlink_to("x", target_is_directory=True)
    assert [item.key for item in read_items(Glob(glob="link.txt"), tree)] == ["link.txt"]
    assert [item.key for item in read_items(Glob(glob="z/*.txt"), tree)] == ["z/a.txt"]


def test_any_depth_does_not_go_through_links(tree: Path) -> None:
    """So a link to a folder above doesn't make an endless walk."""
    (tree / "x" / "up").symlink_to("..", target_is_directory=True)
    (tree / "round.md").symlink_to("and-round")
    (tree / "and-round").symlink_to("round.md")
    assert [item.key for item in read_items(Glob(glob="x/**/*.txt"), tree)] == ["x/a.txt", "x/y/d.txt"]


@pytest.mark.parametrize("target", ["secret.txt", "."], ids=["file", "folder"])
def test_a_link_that_leads_out_is_refused(target: str, tmp_path: Path) -> None:
    """A folder that somebody else filled can't lend out what lies outside."""
    write(tmp_path, "secret.txt", "job/a.txt")
    (tmp_path / "job" / "link.txt").symlink_to(tmp_path / target)
    glob = Glob(glob=("*.txt", "link.txt/*.txt"))
    with pytest.raises(SourceError, match=r"File 'link.txt.*' is a link that leads out of .*; set `root` to"):
        read_items(glob, tmp_path / "job")


def test_a_folder_may_itself_be_reached_through_a_link(tree: Path) -> None:
    """What counts is whether files lie below the folder, not how it is called."""
    (tree / "current").symlink_to("x", target_is_directory=True)
    assert [item.key for item in read_items(Glob(glob="*.txt", root="current"), tree)] == ["a.txt"]


@pytest.mark.parametrize("target", ["nowhere.txt", "link.txt"], ids=["nowhere", "itself"])
def test_a_link_to_nothing_is_refused(target: str, tmp_path: Path) -> None:
    """It isn't passed over: somebody expects that file."""
    (tmp_path / "link.txt").symlink_to(target)
    with pytest.raises(SourceError, match=r"link.txt' can't be read: |nowhere.txt' can't be read: "):
        read_items(Glob(glob="*"), tmp_path)


def test_a_pipe_is_passed_over(tmp_path: Path) -> None:
    """Only files are read; a pipe would be waited for."""
    write(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe")
    assert found(tmp_path, "*") == ["a.txt"]


@pytest.mark.parametrize("name", ["x/y/d.txt", "x/y"], ids=["file", "folder"])
def test_what_may_not_be_read_is_named(name: str, tree: Path) -> None:
    """An unreadable file or folder is an error, not fewer items."""
    (tree / name).chmod(0)
    if os.access(tree / name, os.R_OK):
        pytest.skip("root may read everything")
    with pytest.raises(SourceError, match=f"{name}' can't be read: Permission denied"):
        read_items(Glob(glob="**/*.txt"), tree)
    (tree / name).chmod(0o700)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The message has the whole path."""
    with pytest.raises(SourceError, match=r"gone' can't be read: No such file or directory\."):
        read_items(Glob(glob="*", root="gone"), tmp_path)


def test_a_glob_without_a_match_is_refused(tmp_path: Path) -> None:
    """The message has the globs and the folder they start from."""
    with pytest.raises(SourceError) as caught:
        read_items(Glob(glob=("*.txt", "in/*.md")), tmp_path)
    none = f"There are no items: the glob '*.txt', 'in/*.md' in {str(tmp_path)!r} yields none."
    assert str(caught.value) == f"{none} There is no folder 'in'."


@pytest.mark.parametrize(
    ("glob", "told"),
    [
        ("inbx/*.txt", "yields none. There is no folder 'inbx'; did you mean 'inbox'?"),
        ("inbox/nwe/*.txt", "yields none. There is no folder 'inbox/nwe'; did you mean 'new'?"),
        ("*/nwe/*.txt", "yields none."),
        ("inbox/*.txt", "yields none."),
    ],
)
def test_a_misspelt_folder_is_named(glob: str, told: str, tmp_path: Path) -> None:
    """With a similar one that exists; behind a wildcard there is no single one."""
    (tmp_path / "inbox" / "new").mkdir(parents=True)
    with pytest.raises(SourceError) as caught:
        read_items(Glob(glob=glob), tmp_path)
    assert str(caught.value).endswith(told)


@pytest.mark.parametrize(
    ("globs", "told"),
    [
        pytest.param(("a.txt", "nope/*.md", "b.txt"), "'nope/*.md' matches no file in ROOT; correct", id="several"),
        pytest.param(
            ("*.txt", "x/y/*.txt", "x/*.md"), "'x/*.md' matches no file in ROOT; correct it, or", id="the-last"
        ),
        pytest.param(("*.txt", "p*"), "'p*' matches no file in ROOT; correct it, or leave it out.", id="only-a-pipe"),
        pytest.param(("a.txt", "./x/"), "it is a folder: write 'x/*' for the files in it, 'x/**' for", id="folder"),
        pytest.param("x", "it is a folder: write 'x/*' for the files in it, 'x/**' for", id="only-a-folder"),
        pytest.param("[v].txt", "brackets stand for one character: write '[[]v].txt'.", id="brackets"),
        pytest.param("[w]", "it is a folder: write '[[]w]/*' for", id="folder-with-brackets"),
    ],
)
def test_each_glob_must_match(globs: str | tuple[str, ...], told: str, tree: Path) -> None:
    """One among several that matches nothing is refused by name: somebody expects those files."""
    write(tree, "[v].txt", "[w]/a.txt")
    os.mkfifo(tree / "pipe")
    with pytest.raises(SourceError) as caught:
        read_items(Glob(glob=globs), tree)
    assert told.replace("ROOT", repr(str(tree))) in str(caught.value)


@pytest.mark.parametrize(("size", "fits"), [(10, True), (11, False)], ids=["just-fits", "one-byte-more"])
def test_a_file_over_the_size_is_refused_by_name(size: int, fits: bool, tmp_path: Path) -> None:  # noqa: FBT001 -- a table
    """Nothing is cut off."""
    (tmp_path / "a.txt").write_bytes(b"x" * size)
    glob = Glob(glob="*", max_bytes=10)
    if fits:
        assert read_items(glob, tmp_path)[0].value == "x" * size
    else:
        with pytest.raises(SourceError, match=r"File 'a.txt' is larger than 10 bytes; .* raise `max_bytes`\."):
            read_items(glob, tmp_path)
