"""Changes of the same lines that an agent brings together, and what is done if it doesn't."""

from __future__ import annotations

from collections.abc import Callable  # noqa: TC003 -- the type of a table of cases
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.run_merge import run_integrator
from prefect_dispatch.models.brief import Brief
from tests.integrators.crews import Crew, Seen
from tests.integrators.repos import Files, Nobody, change_of, done, ends, files_at, merging, repository, rows, value

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.workspaces.git import Git

TEXT = "1\n2\n3\n"
BASE: Files = {"a.py": TEXT, "b.py": "b\n", "logo": b"\0"}
BRIEFS = [Brief(name=name, instructions=f"Make {name} of {{value}}.") for name in ("one", "two")]


@pytest.fixture
def repo(tmp_path: Path) -> tuple[Git, str]:
    """A repository with one commit."""
    return repository(tmp_path, BASE)


def contradicting(git: Git, base: str, name: str = "a.py") -> list[Outcome]:
    """Return two changes of one line, and one of another file."""
    files: Files = {**BASE, name: TEXT}
    return [
        done("one", change_of(git, base, {**files, name: TEXT.replace("2", "one")})),
        done("two", change_of(git, base, {**files, name: TEXT.replace("2", "two"), "new.py": "new\n"})),
        done("three", change_of(git, base, {**BASE, "b.py": "three\n"})),
    ]


def run(git: Git, outcomes: list[Outcome], resolves: Callable[[Seen], Any]) -> tuple[Merge, Crew]:
    """Return a merge for which an agent is asked, which the audit has nothing against, and the agent."""
    integrator, crew = merging(git, on_conflict="agent"), Crew(git, resolves=resolves)
    merge = integrator.merge_asking(BRIEFS, outcomes, crew)
    again = partial(run_integrator, integrator, BRIEFS, ask=Crew(git, resolves=resolves))
    assert [*map(str, audit(merge, outcomes, BRIEFS, integrator, again=again))] == []
    return merge, crew


def both(files: Seen) -> Files:
    """Bring both sides together, as an agent should."""
    assert files["a.py"].decode() == ("1\n<<<<<<< ours\none\n||||||| base\n2\n=======\ntwo\n>>>>>>> theirs\n3\n")
    return {**files, "a.py": "1\none and two\n3\n"}


@pytest.mark.slow
def test_an_agent_brings_both_together(repo: tuple[Git, str]) -> None:
    """It sees both sides with what each was made for, and may write the files concerned and no others."""
    git, base = repo
    merge, crew = run(git, contradicting(git, base), both)
    files = files_at(git, value(merge)["commit"])
    assert (files["a.py"], files["new.py"], files["b.py"]) == (b"1\none and two\n3\n", b"new\n", b"three\n")
    assert {end for end, _ in ends(merge).values()} == {"merged"}
    [row] = rows(merge, "conflicts")
    assert (row["rule"], row["change"]) == ("agent", "two/repo")
    assert next(field.rule for field in merge.fields if field.path == "/files/0") == "merge_branches:agent"
    question = crew.questions[0]
    assert question.brief.writes == ("a.py",)
    assert question.item.value == {
        "files": ["a.py"],
        "ours": [{"change": "one/repo", "goal": "Make one of {value}."}],
        "theirs": {"change": "two/repo", "goal": "Make two of {value}."},
    }
    assert merge.shortfalls == ()


def some(files: Seen) -> Files:
    """Leave some of the markers."""
    return {**files, "a.py": files["a.py"].replace(b"<<<<<<< ours\n", b"")}


def middle(files: Seen) -> Files:
    """Leave the marker that might be a line of the file."""
    return {**files, "a.py": b"1\n=======\n3\n"}


def another(files: Seen) -> Files:
    """Write another file, too."""
    return {**both(files), "c.py": "x"}


WRONG: dict[str, tuple[Callable[[Seen], Any], str]] = {
    "fails": (lambda _: None, "no agent could: max_usd"),
    "idle": (lambda _: "idle", "the agent changed nothing"),
    "untouched": (lambda files: files, "the agent left markers in 'a.py'"),
    "some": (some, "left markers in 'a.py'"),
    "middle": (middle, "left markers"),
    "another": (another, "the agent changed 'c.py' as well"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("resolves", "why"), WRONG.values(), ids=WRONG)
def test_what_an_agent_may_not_do(repo: tuple[Git, str], resolves: Callable[[Seen], Any], why: str) -> None:
    """Then the change that comes later is left out, and so it is told."""
    git, base = repo
    merge, _ = run(git, contradicting(git, base), resolves)
    assert ends(merge)["two"] == ("overridden", "one")
    assert files_at(git, value(merge)["commit"])["a.py"] == b"1\none\n3\n"
    [told] = merge.shortfalls
    assert told.startswith("two/repo is left out: skip: contradicts one/repo")
    assert why in told


@pytest.mark.slow
def test_lines_that_look_like_markers_may_be_the_files_own(repo: tuple[Git, str]) -> None:
    """A heading that is underlined with seven characters is none."""
    git, base = repo
    head = "Heading\n=======\n"
    outcomes = [
        done("one", change_of(git, base, {**BASE, "a.py": f"{head}one\n"})),
        done("two", change_of(git, base, {**BASE, "a.py": f"{head}two\n"})),
    ]
    merge, _ = run(git, outcomes, lambda files: {**files, "a.py": f"{head}one and two\n"})
    assert ends(merge)["two"] == ("merged", None)


@pytest.mark.slow
def test_a_file_that_goes_is_an_answer(repo: tuple[Git, str]) -> None:
    """An agent may find that nothing should stand there."""
    git, base = repo
    merge, _ = run(git, contradicting(git, base), lambda files: _without(files, "a.py"))
    assert "a.py" not in files_at(git, value(merge)["commit"])


def _without(files: Seen, name: str) -> Files:
    return {path: content for path, content in files.items() if path != name}


@pytest.mark.slow
def test_a_file_without_lines_goes_by_the_first(repo: tuple[Git, str]) -> None:
    """No agent is asked about it."""
    git, base = repo
    outcomes = [
        done("one", change_of(git, base, {**BASE, "logo": b"\0one"})),
        done("two", change_of(git, base, {**BASE, "logo": b"\0two", "b.py": "two\n"})),
    ]
    merge, crew = run(git, outcomes, lambda _: None)
    assert crew.questions == []
    assert [row["rule"] for row in rows(merge, "conflicts")] == ["priority"]
    assert files_at(git, value(merge)["commit"])["logo"] == b"\0one"


@pytest.mark.slow
def test_without_an_agent_nobody_is_asked(repo: tuple[Git, str]) -> None:
    """The job's executor may have no workspace; a name may be one that no agent could be told."""
    git, base = repo
    merge = merging(git, on_conflict="agent").merge_asking(BRIEFS, contradicting(git, base), Nobody())
    assert "there is no agent to ask" in merge.shortfalls[0]
    odd = contradicting(git, base, b"caf\xe9".decode("utf-8", "surrogateescape"))
    merge, crew = run(git, odd, both)
    assert "a name is no UTF-8" in merge.shortfalls[0]
    assert crew.questions == []
