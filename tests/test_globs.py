"""Whether two globs can mean the same path."""

from __future__ import annotations

import fnmatch
import glob
import itertools
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.errors import BriefError
from prefect_dispatch.models.globs import Glob, find_overlaps, matches_path, overlap

WORDS = ["".join(word) for size in range(5) for word in itertools.product("abcd]-", repeat=size)][1:]
PART = st.sampled_from(["a", "b", "*", "?", "[ab]", "[!a]", "[a-b]", "[!a-b]", "[]b]", "[!]a]", "[b-]", "[!b-ac]"])
NAME = st.lists(PART, min_size=1, max_size=2).map("".join)
PATH = st.tuples(
    st.lists(st.sampled_from(["a", "b", "*", "**", "?", "[!a]"]), min_size=1, max_size=3).map("/".join),
    st.sampled_from(["", "/"]),
).map("".join)
ANY_PATH = st.tuples(
    st.sampled_from(["", "/", "../", "./"]),
    st.lists(st.one_of(NAME, st.sampled_from(["**", "a", "b", "", "."])), min_size=1, max_size=4).map("/".join),
).map("".join)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All paths of up to six names, each 'a' or 'b'; all are folders."""
    root = tmp_path_factory.mktemp("tree")
    for names in itertools.product("ab", repeat=6):
        root.joinpath(*names).mkdir(parents=True)
    return root


@cache
def meant(pattern: str, root: Path) -> frozenset[str]:
    """The folders that a pattern means, as the standard library finds them on the disk."""
    found = set(glob.glob(pattern, root_dir=root, recursive=True))  # noqa: PTH207 -- a path's own reads `**` differently
    if pattern.endswith("/") or not glob.has_magic(pattern):
        found |= {path for each in found for path in glob.glob(f"{each}/**", root_dir=root, recursive=True)}  # noqa: PTH207 -- the same
    return frozenset(str(Path(path)) for path in found)


@given(one=PATH, other=PATH)
def test_paths_overlap_if_and_only_if_they_meet_on_a_disk(tree: Path, one: str, other: str) -> None:
    """Two globs overlap if and only if the standard library finds a path that both mean."""
    assert overlap(Glob.parse(one), Glob.parse(other)) == bool(meant(one, tree) & meant(other, tree)), (one, other)


@given(pattern=PATH, names=st.lists(st.sampled_from("ab"), min_size=1, max_size=6))
def test_a_path_is_meant_if_and_only_if_it_is_found_on_a_disk(tree: Path, pattern: str, names: list[str]) -> None:
    """A glob means a path if and only if the standard library finds it there."""
    path = "/".join(names)
    assert matches_path(Glob.parse(pattern), path) == (path in meant(pattern, tree)), (pattern, path)


@given(one=NAME, other=NAME)
def test_names_overlap_if_and_only_if_some_word_matches_both(one: str, other: str) -> None:
    """Two globs of one name overlap if and only if `fnmatch` finds a word that both match."""
    words = [word for word in WORDS if fnmatch.fnmatchcase(word, one) and fnmatch.fnmatchcase(word, other)]
    assert overlap(Glob.parse(f"{one}/x"), Glob.parse(f"{other}/x")) == bool(words), (one, other, words[:3])


@given(pattern=ANY_PATH)
def test_the_one_form_is_stable(pattern: str) -> None:
    """The text of a glob stands for that glob again."""
    once = Glob.parse(pattern)
    assert Glob.parse(once.text) == once
    assert Glob.parse(once.text).names == once.names


@given(patterns=st.lists(ANY_PATH, max_size=8))
def test_the_index_loses_no_pair(patterns: list[str]) -> None:
    """Sorting by what globs begin and end with finds the pairs that comparing each with each finds."""
    globs = sorted(set(map(Glob.parse, patterns)))
    found = list(find_overlaps(globs))
    assert sorted(found) == [(a, b) for a, b in itertools.combinations(globs, 2) if overlap(a, b)]


@given(name=st.text(st.sampled_from("a*?[]!-"), min_size=1, max_size=6))
def test_an_escaped_name_means_itself_alone(name: str) -> None:
    """What `glob.escape` makes of a name is a plain path."""
    assert Glob.parse(glob.escape(name)).names == (name, None)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        pytest.param("./a/../b//c/", "b/c", id="normalised"),
        pytest.param("", ".", id="the-folder-itself"),
        pytest.param("a/..", ".", id="back-to-it"),
        pytest.param("../../x", "../../x", id="above"),
        pytest.param("/../x", "/x", id="nothing-above-the-root"),
        pytest.param("a/**/**/b", "a/**/b", id="any-number-of-folders-once"),
        pytest.param("*/", "*/", id="all-below"),
        pytest.param("[a].txt", "a.txt", id="a-set-of-one"),
        pytest.param("[", "[[]", id="an-open-set-is-text"),
        pytest.param("[]", "[[]]", id="an-empty-set-is-text"),
        pytest.param("[!]", "[[]!]", id="an-empty-exclusion-is-text"),
    ],
)
def test_globs_have_one_form(pattern: str, text: str) -> None:
    """Ways of writing the same glob are one text."""
    assert Glob.parse(pattern).text == text


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param("src/", "src/a.py", True, id="a-folder-holds-what-is-below"),
        pytest.param("src", "src/x/a.py", True, id="so-does-one-without-a-slash"),
        pytest.param("src", "srcs/a.py", False, id="a-name-is-whole"),
        pytest.param("src/*", "src/x/a.py", False, id="a-star-stays-within-a-name"),
        pytest.param("src/*/", "src/x/y/a.py", True, id="a-last-slash-means-all-below"),
        pytest.param(".", "x/a.py", True, id="the-working-folder"),
        pytest.param("A.md", "a.md", False, id="case-counts"),
        pytest.param("../a", "a", False, id="above-is-elsewhere"),
        pytest.param("/a", "a", False, id="the-root-is-elsewhere"),
        pytest.param("**/.env", "*/.env", True, id="hidden-names"),
        pytest.param("out/*.json", "out/a.*", True, id="one-from-each-side"),
        pytest.param("**/a/**/x*", "**/b/**/*y", True, id="folders-on-both-sides"),
        pytest.param("*a*a", "*b*b", False, id="ends-that-differ"),
        pytest.param("[!a-ca-b]", "c", False, id="spans-that-overlap"),
        pytest.param("[!a-db-c]", "d", False, id="a-span-inside-another"),
        pytest.param("é[à-ü].md", "éé.md", True, id="letters-beyond-ascii"),
    ],
)
def test_overlap(one: str, other: str, expected: bool) -> None:  # noqa: FBT001 -- a column of the table
    """The rules of the module, case by case, in both directions."""
    assert overlap(Glob.parse(one), Glob.parse(other)) is expected
    assert overlap(Glob.parse(other), Glob.parse(one)) is expected


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        pytest.param("src", "src/x/a.py", True, id="a-folder-holds-what-is-below"),
        pytest.param("src/a.py", "src", False, id="and-not-what-is-above"),
        pytest.param("*.py", "src/a.py", False, id="a-star-stays-within-a-name"),
        pytest.param("**", ".git*", True, id="everything"),
        pytest.param("[*].py", "*.py", True, id="a-name-with-a-wildcard"),
        pytest.param("[*].py", "a.py", False, id="which-means-itself-alone"),
        pytest.param("README.md", "readme.md", False, id="case-counts"),
        pytest.param("../a", "a", False, id="above-is-elsewhere"),
        pytest.param("/a", "a", False, id="the-root-is-elsewhere"),
    ],
)
def test_means(pattern: str, path: str, expected: bool) -> None:  # noqa: FBT001 -- a column of the table
    """Which files a glob means; the path's own text is no glob."""
    assert matches_path(Glob.parse(pattern), path) is expected


def test_going_up_from_any_folder_is_refused() -> None:
    """Where `**/..` leads can't be told, so it is an error that names the glob."""
    with pytest.raises(BriefError, match=r"'a/\*\*/\.\./b' goes up"):
        Glob.parse("a/**/../b")
