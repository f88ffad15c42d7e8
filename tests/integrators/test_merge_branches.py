"""Changes of one repository merged into one: order, conflicts, equal and idle changes, and the ledger."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise, permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import ValidationError

from prefect_dispatch import Command, MergeBranches, Shell, Workspace
from prefect_dispatch.errors import JobError, MergeError
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.run_merge import merge_digest, prepare_integrator, run_integrator
from prefect_dispatch.testing import ScriptedExecutor
from prefect_dispatch.workspaces.git import Git
from tests.integrators.repos import (
    WHO,
    Edits,
    Files,
    Nobody,
    change_of,
    done,
    ends,
    files_at,
    lost,
    merging,
    repository,
    rows,
    value,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome

TEXT = "1\n2\n3\n4\n5\n6\n7\n8\n9\n"
BASE: Files = {"a.py": TEXT, "b.py": "x\n", "logo.png": b"\0base"}
RENDER = MarkdownIt("gfm-like", {"linkify": False})
RULES = ("priority", "skip", "fail")


def merged(git: Git, outcomes: Sequence[Outcome], **more: Any) -> Merge:  # noqa: ANN401 -- fields of the integrator
    """Return a merge that the audit has nothing against."""
    integrator = merging(git, **more)
    merge = integrator.merge_asking([], outcomes, Nobody())
    again = partial(run_integrator, integrator, [], ask=Nobody())
    assert [*map(str, audit(merge, outcomes, [], integrator, again=again))] == []
    return merge


@pytest.fixture
def repo(tmp_path: Path) -> tuple[Git, str]:
    """A repository with one commit."""
    return repository(tmp_path, BASE)


def test_changes_that_do_not_meet_are_all_there(repo: tuple[Git, str]) -> None:
    """Each file is the one that its change left, and says whose it is."""
    git, base = repo
    one = done("one", change_of(git, base, {**BASE, "a.py": TEXT.replace("2", "two")}))
    two = done("two", change_of(git, base, {**BASE, "new/c.py": "c\n"}))
    three = done("three", change_of(git, base, {path: BASE[path] for path in ("a.py", "b.py")}))
    merge = merged(git, [one, two, three, lost("four")])
    said = value(merge)
    assert files_at(git, said["commit"]) == {
        "a.py": TEXT.replace("2", "two").encode(),
        "b.py": b"x\n",
        "new/c.py": b"c\n",
    }
    assert [(each["path"], each["by"], bool(each["blob"])) for each in said["files"]] == [
        ("a.py", ["one/repo"], True),
        ("logo.png", ["three/repo"], False),
        ("new/c.py", ["two/repo"], True),
    ]
    assert [each["value"] for each in said["said"]] == ["one is done.", "three is done.", "two is done."]
    assert said["gaps"] == [{"brief": "four", "item": "repo", "status": "failed", "reason": "timeout: Too late."}]
    assert (said["base"], said["accepted"]) == (base, None)
    assert set(ends(merge).values()) == {("merged", None), ("failed", None)}
    assert (merge.shortfalls, merge.failed, merge.flags) == ((), "", ())
    assert {row.rule for row in merge.fields if row.path.startswith("/files")} == {"kept"}


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_lines_that_contradict_go_by_the_rule(repo: tuple[Git, str], rule: str) -> None:
    """By priority each group of lines by itself; else the later change is left out whole, or the run fails too."""
    git, base = repo
    low = done("a-low", change_of(git, base, {**BASE, "a.py": TEXT.replace("2", "low").replace("9", "nine")}))
    high = done("z-high", change_of(git, base, {**BASE, "a.py": TEXT.replace("2", "high")}), priority=5)
    merge = merged(git, [low, high], on_conflict=rule)
    text = files_at(git, value(merge)["commit"])["a.py"].decode()
    kept = TEXT.replace("2", "high")
    assert text == (kept.replace("9", "nine") if rule == "priority" else kept)
    assert ends(merge) == {
        "a-low": ("merged", None) if rule == "priority" else ("overridden", "z-high"),
        "z-high": ("merged", None),
    }
    [row] = rows(merge, "conflicts")
    assert (row["path"], row["kind"], row["change"], row["against"], row["rule"]) == (
        *("a.py", "lines", "a-low/repo", ["z-high/repo"]),
        rule,
    )
    assert (row["base_text"], row["ours_text"], row["theirs_text"]) == ("2\n", "high\n", "low\n")
    [field] = [each for each in merge.fields if each.path == "/files/0"]
    [loser] = field.losers
    theirs: Any = loser.value
    assert f"100644 {theirs['blob']}" == row["theirs"]
    assert [str(ref) for ref in loser.sources] == ["a-low/repo"]
    [flag] = merge.flags
    assert (flag.path, flag.kind) == ("/files/0", "conflict")
    assert bool(merge.shortfalls) == (rule != "priority")
    assert ("on_conflict" in merge.failed) == (rule == "fail")
    assert rows(merge, "overlaps") == [
        {"path": "a.py", "one": "z-high/repo", "other": "a-low/repo", "how": "same lines"}
    ]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("first", "second", "result"),
    [
        pytest.param({"b.py": None}, {"b.py": "y\n"}, {}, id="deleted-then-changed"),
        pytest.param({"b.py": "y\n"}, {"b.py": None}, {"b.py": "y\n"}, id="changed-then-deleted"),
        pytest.param({"b.py": None, "moved.py": "x\n"}, {"b.py": "y\n"}, {"moved.py": "x\n"}, id="renamed"),
        pytest.param({"logo.png": b"\0one"}, {"logo.png": b"\0two"}, {"logo.png": b"\0one"}, id="binary"),
        pytest.param({"n.py": "one\n"}, {"n.py": "two\n"}, {"n.py": "one\n"}, id="both-add"),
        pytest.param({"b.py": "y\n"}, {"b.py": ("120000", b"a.py")}, {"b.py": "y\n"}, id="a-link-instead"),
        pytest.param({"b.py": None, "b.py/x": "in"}, {"b.py": "y\n"}, {"b.py/x": "in"}, id="a-folder-instead"),
        pytest.param({"n": "file"}, {"n/x": "in it"}, {"n": "file"}, id="file-then-folder"),
    ],
)
def test_whole_files_that_contradict_go_by_the_first(
    repo: tuple[Git, str], rule: str, first: Edits, second: Edits, result: Files
) -> None:
    """What has no lines in common counts whole; what else the second one did counts only by priority."""
    git, base = repo
    also: Files = {"also.py": "z\n"}
    one = done("one", change_of(git, base, _but(first)))
    two = done("two", change_of(git, base, _but({**second, **also})))
    merge = merged(git, [two, one], on_conflict=rule)
    there = {**result, **(also if rule == "priority" else {})}
    wanted = change_of(git, base, {**_without(first, second), **there}).tree
    assert value(merge)["tree"] == wanted
    assert ends(merge)["two"] == (("merged", None) if rule == "priority" else ("overridden", "one"))
    assert {row["rule"] for row in rows(merge, "conflicts")} == {rule}


def _but(changes: Edits) -> Files:
    made: Edits = {**BASE, **changes}
    return {path: content for path, content in made.items() if content is not None}


def _without(*changes: Edits) -> Files:
    gone = {path for each in changes for path in each}
    return {path: content for path, content in BASE.items() if path not in gone}


@pytest.mark.slow
def test_a_change_of_which_nothing_is_left_is_overridden(repo: tuple[Git, str]) -> None:
    """It is told by which, and no commit is made of it."""
    git, base = repo
    one = done("one", change_of(git, base, {**BASE, "b.py": "one\n"}))
    two = done("two", change_of(git, base, {**BASE, "b.py": "two\n"}))
    merge = merged(git, [one, two])
    assert ends(merge) == {"one": ("merged", None), "two": ("overridden", "one")}
    assert git.output("rev-list", "--count", f"{base}..{value(merge)['commit']}") == "2"
    assert merge.shortfalls == ()


@pytest.mark.slow
def test_equal_contained_and_idle_changes(repo: tuple[Git, str]) -> None:
    """Equal changes are merged once; what is there already is a duplicate; what changed nothing is told."""
    git, base = repo
    both = {**BASE, "b.py": "y\n", "c.py": "c\n"}
    merge = merged(
        git,
        [
            done("a", change_of(git, base, both)),
            done("b", change_of(git, base, both)),
            done("c", change_of(git, base, {**BASE, "b.py": "y\n"})),
            done("d", change_of(git, base, BASE)),
            done("e", None),
        ],
    )
    assert ends(merge) == {
        "a": ("merged", None),
        "b": ("duplicate_of", "a"),
        "c": ("duplicate_of", "a"),
        "d": ("merged", None),
        "e": ("merged", None),
    }
    assert merge.shortfalls == (
        "d/repo changed nothing in the repository.",
        "e/repo changed nothing in the repository.",
    )
    assert rows(merge, "overlaps") == [{"path": "b.py", "one": "a/repo", "other": "c/repo", "how": "same content"}]


@pytest.mark.slow
def test_two_may_leave_the_same_file(repo: tuple[Git, str]) -> None:
    """A file that two changes leave alike is of both."""
    git, base = repo
    one = done("one", change_of(git, base, {**BASE, "b.py": "y\n", "c.py": "1"}))
    two = done("two", change_of(git, base, {**BASE, "b.py": "y\n", "d.py": "2"}))
    merge = merged(git, [one, two])
    assert [each["by"] for each in value(merge)["files"]] == [["one/repo", "two/repo"], ["one/repo"], ["two/repo"]]


@pytest.mark.slow
def test_the_priority_of_items_counts_after_that_of_briefs(repo: tuple[Git, str]) -> None:
    """Then the order of every list: numbers by their value."""
    git, base = repo
    says = {"i2": 0, "i10": 0, "i3": 4}
    outcomes = [
        done("fix", change_of(git, base, {**BASE, "b.py": key}), item=key).model_copy(
            update={"item_priority": priority}
        )
        for key, priority in says.items()
    ]
    merge = merged(git, outcomes)
    assert [row["change"] for row in rows(merge, "branches")] == ["fix/i3", "fix/i2", "fix/i10"]
    assert files_at(git, value(merge)["commit"])["b.py"] == b"i3"


def test_changes_of_several_bases_are_refused(repo: tuple[Git, str]) -> None:
    """And so is a merge of no change at all."""
    git, base = repo
    other = git.output("commit-tree", f"{base}^{{tree}}", "-p", base, stdin=b"Another\n", env=WHO)
    outcomes = [done("a", change_of(git, base, {})), done("b", change_of(git, other, {}))]
    integrator = merging(git)
    with pytest.raises(MergeError, match=r"'a/repo' began from commit .*, and 'b/repo' from .* name a commit or a tag"):
        run_integrator(integrator, [], outcomes, Nobody())
    with pytest.raises(MergeError, match="No outcome has a change of a repository to merge"):
        run_integrator(integrator, [], [done("a", None)], Nobody())


def test_a_change_that_is_not_what_it_says_is_not_merged(repo: tuple[Git, str]) -> None:
    """A stored answer that was tampered with is found out before it is a commit."""
    git, base = repo
    change = change_of(git, base, {**BASE, "b.py": "y\n"})
    wrong = done("a", change.model_copy(update={"patch": change.patch.replace("+y", "+z")}))
    integrator = merging(git)
    with pytest.raises(MergeError, match="its patch makes the tree"):
        run_integrator(integrator, [], [wrong], Nobody())


@pytest.mark.slow
def test_the_patch_makes_the_merge_of_the_base(repo: tuple[Git, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """`git apply --index` in a clone of the base comes to the same tree, files that are no UTF-8 included."""
    git, base = repo
    latin = "é\n".encode("latin-1")
    one = done("one", change_of(git, base, {**BASE, "latin.txt": latin, "logo.png": b"\0new", "crlf.txt": b"a\r\n"}))
    two = done("two", change_of(git, base, {"a.py": ("100755", TEXT.encode()), "link": ("120000", b"a.py")}))
    merge = merged(git, [one, two])
    patch = next(each.text for each in merge.documents if each.name == "merged.patch")
    clone, _ = repository(tmp_path_factory.mktemp("clone"), BASE)
    clone.output_bytes("apply", "--index", stdin=patch.encode())
    assert clone.output("write-tree") == value(merge)["tree"]


@pytest.mark.slow
def test_a_reviewer_reads_text_and_nothing_else(repo: tuple[Git, str]) -> None:
    """Names of files, contents and what agents say can't become a table, a link, an image or HTML."""
    git, base = repo
    name = "a|b](www.evil.example)<img src=x>\n# head.md"
    evil = "```\n<script>alert(1)</script>\n![](http://evil.example/x)\x1b[31m\n"
    one = done("one", change_of(git, base, {**BASE, name: evil}), priority=1)
    two = done("two", change_of(git, base, {**BASE, name: evil.replace("alert", "evil")}), item="<b>|x\n# y")
    merge = merged(git, [one, two, lost("three", "[x](http://evil.example)")])
    text = next(each.text for each in merge.documents if each.name == "review.md")
    assert "\x1b" not in text
    tokens = RENDER.parse(text)
    kinds = {token.type for token in tokens} | {child.type for each in tokens for child in each.children or ()}
    assert not kinds & {"link_open", "image", "html_block", "html_inline", "blockquote_open", "ordered_list_open"}
    titles = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    assert titles[:4] == ["What was merged", "Changes", "Files", "What several changes touch"]
    assert len(titles) == 8  # one for the file that both add
    assert [token.info for token in tokens if token.type == "fence"] == ["text", "text"]


@pytest.mark.slow
def test_a_file_name_is_shown_with_all_that_cannot_be_seen_of_it(repo: tuple[Git, str]) -> None:
    """One with a line break in it forges no line, and does not look like one with a blank."""
    git, base = repo
    names = ["x\n\n# Accepted.py", "x # Accepted.py", "x\u202eyp.py"]
    changes = [done(who, change_of(git, base, {**BASE, **dict.fromkeys(names, f"{who}\n")})) for who in ("one", "two")]
    text = next(each.text for each in merged(git, changes).documents if each.name == "review.md")
    shown = [RENDER.renderInline(line.removeprefix("### ")) for line in text.splitlines() if line.startswith("### ")]
    assert shown == [r"x\n\n# Accepted.py", "x # Accepted.py", r"x\u202eyp.py"]
    assert all(line.isprintable() for line in text.splitlines())


def test_secrets_and_control_characters_do_not_get_into_titles(
    repo: tuple[Git, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an item is called is the title of a commit, as one line."""
    monkeypatch.setenv("SOME_API_KEY", "key-of-somebody")
    git, base = repo
    one = done("one", change_of(git, base, {**BASE, "b.py": "y\n"}), item="two\nlines key-of-somebody \x1b[31m")
    merge = merged(git, [one])
    titles = git.output("log", "--format=%s", f"{base}..{value(merge)['commit']}").splitlines()
    assert titles == ["Merge one/two lines *** [31m", "one/two lines *** [31m"]


def test_what_does_not_go_together_is_refused() -> None:
    """An agent that decides nothing; an acceptance command that would report, or read an item."""
    with pytest.raises(ValidationError, match="'agent' is for on_conflict 'agent', and it is 'skip'"):
        MergeBranches.model_validate({"on_conflict": "skip", "agent": {"kind": "llm", "model": "openai/x"}})
    for more in ({"stdin": True}, {"report": ["*.xml"]}):
        with pytest.raises(ValidationError, match=f"leave out '{next(iter(more))}'"):
            MergeBranches.model_validate({"accept": {"run": "true", **more}})


def test_changes_are_merged_where_they_are_made(
    repo: tuple[Git, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In the executor's repository, set up as it sets up; in another only if that has the commit they begin from."""
    git, base = repo
    folder = git.repo.parent
    shell = Shell(workspace=Workspace(repo=git.repo.name, setup=Command(run="make"))).resolve_paths(folder)
    taken = prepare_integrator(MergeBranches(accept=Command(run="true")), [], [], folder, shell)
    assert isinstance(taken, MergeBranches)
    assert taken.workspace == shell.workspace
    bare = Git(tmp_path_factory.mktemp("bare"))
    bare.output("init", "--quiet", "--bare")
    other = MergeBranches(workspace=Workspace(repo=str(bare.repo), base=base))
    with pytest.raises(JobError, match=r"^integrator\.workspace\.repo: '.*' has no commit .*leave it out"):
        prepare_integrator(other, [], [], folder, shell)
    (bare.repo / "objects" / "info" / "alternates").write_text(f"{git.repo / '.git' / 'objects'}\n", encoding="utf-8")
    found = prepare_integrator(other, [], [], folder, shell)
    assert isinstance(found, MergeBranches)
    assert found.workspace == Workspace(repo=str(bare.repo), base=base)
    assert prepare_integrator(other, [], [], folder, ScriptedExecutor({})) == found
    with pytest.raises(JobError, match=r"^integrator\.workspace\.repo: there is no folder"):
        prepare_integrator(MergeBranches(workspace=Workspace(repo="none")), [], [], folder, shell)


PATHS = ("a.py", "b.py", "lib/c.py")
CHANGES = st.dictionaries(
    st.sampled_from((*PATHS, "lib")),
    st.one_of(st.none(), st.lists(st.sampled_from("xyz2"), min_size=1, max_size=5).map("\n".join)),
    max_size=3,
)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(changes=st.lists(CHANGES, min_size=2, max_size=4), rule=st.sampled_from(RULES), data=st.data())
def test_the_order_of_arrival_changes_no_byte(changes: list[Edits], rule: str, data: st.DataObject) -> None:
    """The same commit, the same ledger and the same review, whoever came first; conflicts included."""
    with TemporaryDirectory() as folder:
        start: Files = dict.fromkeys(PATHS, "1\n2\n3\n")
        git, base = repository(Path(folder), start)
        outcomes = [
            done(f"m{at}", change_of(git, base, _plausible({**start, **change})), priority=data.draw(st.integers(0, 1)))
            for at, change in enumerate(changes)
        ]
        if not any(outcome.change and outcome.change.files for outcome in outcomes):
            return
        merge = merged(git, outcomes, on_conflict=rule)
        turned = data.draw(st.permutations(outcomes))
        integrator = merging(git, on_conflict=rule)
        assert merge_digest(integrator.merge_asking([], turned, Nobody())) == merge_digest(merge)


def _plausible(files: Edits) -> Files:
    """Return files without those that can't be beside a file where there is their folder."""
    kept = {path: content for path, content in files.items() if content is not None}
    return {path: content for path, content in kept.items() if path != "lib" or "lib/c.py" not in kept}


@pytest.mark.slow
def test_every_order_of_three_that_contradict(repo: tuple[Git, str]) -> None:
    """Said for one case in all its orders, so that it is said without chance, too."""
    git, base = repo
    outcomes = [
        done(name, change_of(git, base, {**BASE, "a.py": TEXT.replace("5", name), f"{name}.py": name}))
        for name in ("a", "b", "c")
    ]
    integrator = merging(git)
    made = {integrator.merge_asking([], turned, Nobody()).model_dump_json() for turned in permutations(outcomes)}
    assert len(made) == 1
    assert json.loads(next(iter(made)))["value"]["commit"]
