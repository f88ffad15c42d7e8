"""A merge that isn't the one of its changes is found out: bent afterwards, or wrong from the start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.audit import audit
from tests.integrators.crews import Crew
from tests.integrators.repos import Edits, Files, Nobody, change_of, done, merging, repository, value

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.workspaces.git import Git

BASE: Files = {"a.py": "1\n2\n3\n4\n5\n", "b.py": "b\n", "c": "c\n"}


@pytest.fixture
def repo(tmp_path: Path) -> tuple[Git, str]:
    """A repository with one commit."""
    return repository(tmp_path, BASE)


def but(**edits: bytes | str | None) -> Files:
    """Return the base with files changed; `a_py` is `a.py`."""
    made: Edits = {**BASE, **{name.replace("_", "."): text for name, text in edits.items()}}
    return {path: content for path, content in made.items() if content is not None}


def two(git: Git, base: str) -> list[Outcome]:
    """Return two changes of one line, each with another one of its own."""
    return [
        done("one", change_of(git, base, but(a_py="one\n2\n3\n4\nfive\n"))),
        done("two", change_of(git, base, but(a_py="two\n2\n3\n4\n5\n", b_py="B\n"))),
    ]


def told(merge: Merge, name: str, **row: Any) -> Merge:  # noqa: ANN401 -- JSON
    """Return a merge whose table says something else in each row; without any, it has none."""
    tables = tuple(
        table.model_copy(update={"rows": tuple({**each, **row} for each in table.rows if row)})
        if table.name == name
        else table
        for table in merge.tables
    )
    return merge.model_copy(update={"tables": tables})


def valued(merge: Merge, **more: Any) -> Merge:  # noqa: ANN401 -- JSON
    """Return a merge whose value says something else."""
    return merge.model_copy(update={"value": {**value(merge), **more}})


BENT: dict[str, tuple[Callable[[Merge, str], Merge], str]] = {
    "commit": (lambda merge, base: valued(merge, commit=base), "/commit"),
    "tree": (lambda merge, base: valued(merge, tree=base), "/tree"),
    "base": (lambda merge, base: valued(merge, base="0" * len(base)), "/base"),
    "files": (lambda merge, _: valued(merge, files=value(merge)["files"][1:]), "'a.py' isn't what was merged"),
    "patch": (
        lambda merge, _: merge.model_copy(update={"documents": merge.documents[1:]}),
        "its document 'merged.patch' isn't what was merged",
    ),
    "conflict-hidden": (
        lambda merge, _: told(merge, "conflicts"),
        "its table 'conflicts' isn't what these changes contradict",
    ),
    "ledger": (
        lambda merge, _: merge.model_copy(
            update={"ledger": (merge.ledger[0].model_copy(update={"disposition": "overridden"}), *merge.ledger[1:])}
        ),
        "the changes that the ledger lists as merged result in",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("bend", "found"), BENT.values(), ids=BENT)
def test_a_merge_that_was_bent(repo: tuple[Git, str], bend: Callable[[Merge, str], Merge], found: str) -> None:
    """Its value, its patch, its ledger or its conflicts say something else than what follows from the changes."""
    git, base = repo
    outcomes, integrator = two(git, base), merging(git)
    merge = integrator.merge_asking([], outcomes, Nobody())
    assert [*integrator.verify(merge, outcomes, [])] == []
    said = [str(each) for each in integrator.verify(bend(merge, base), outcomes, [])]
    assert any(found in each for each in said), said


@pytest.mark.slow
def test_what_an_agent_brought_together_can_not_be_bent(repo: tuple[Git, str]) -> None:
    """The table has what it made; another content there makes another tree."""
    git, base = repo
    outcomes, integrator = two(git, base), merging(git, on_conflict="agent")
    crew = Crew(git, resolves=lambda files: {**files, "a.py": b"one two\n2\n3\n4\nfive\n"})
    merge = integrator.merge_asking([], outcomes, crew)
    assert [*integrator.verify(merge, outcomes, [])] == []
    assert any("/commit" in str(each) for each in integrator.verify(told(merge, "conflicts", result=""), outcomes, []))
    assert audit(merge, outcomes, [], integrator) == ()


@pytest.mark.slow
def test_an_agent_may_take_one_side(repo: tuple[Git, str]) -> None:
    """Then nothing of it is lost by the rule, and no loser is told."""
    git, base = repo
    outcomes = [
        done("one", change_of(git, base, but(b_py="one\n"))),
        done("two", change_of(git, base, but(b_py="two\n"))),
    ]
    crew = Crew(git, resolves=lambda files: {**files, "b.py": b"two\n"})
    merge = merging(git, on_conflict="agent").merge_asking([], outcomes, crew)
    assert [row.losers for row in merge.fields if row.path == "/files/0"] == [()]


@pytest.mark.slow
def test_many_conflicts_are_shown_in_part(tmp_path: Path) -> None:
    """A review has no more than somebody reads; the table has all."""
    names = [f"f{at}" for at in range(52)]
    git, base = repository(tmp_path, dict.fromkeys(names, "0\n"))
    outcomes = [done(who, change_of(git, base, dict.fromkeys(names, f"{who}\n"))) for who in ("one", "two")]
    merge = merging(git, on_conflict="fail").merge_asking([], outcomes, Nobody())
    review = next(each.text for each in merge.documents if each.name == "review.md")
    assert "… and 2 more in the table `conflicts`." in review
    assert merge.failed.endswith("; and 32 more.")


@pytest.mark.parametrize("agent", [{"kind": "llm", "model": "openai/x"}, {"kind": "shell"}])
def test_who_writes_no_files_is_no_agent(repo: tuple[Git, str], agent: dict[str, str]) -> None:
    """A language model only speaks, and a shell only runs commands: refused before anything is spent."""
    integrator = merging(repo[0], on_conflict="agent", agent=agent)
    with pytest.raises(JobError, match=r"integrator\.agent: \w+ doesn't edit files as instructed; name a coding agent"):
        integrator.preflight([])


def test_what_can_be_asked_is_not_refused(repo: tuple[Git, str]) -> None:
    """A coding agent is one; a command can be run on the base."""
    git, _ = repo
    agent = {
        "kind": "coding",
        "agent": {"name": "a", "argv": ["true"]},
        "model": "m",
        "workspace": {"repo": str(git.repo)},
    }
    merging(git, on_conflict="agent", agent=agent).preflight([])
    merging(git, accept={"run": "true"}).preflight([])
