"""What merges cleanly may still break: which change is left out for it, and what is told where nobody is to blame."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.run_merge import run_integrator
from tests.integrators.crews import Crew
from tests.integrators.repos import Files, change_of, done, ends, files_at, merging, repository, rows, value

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.workspaces.git import Git
    from tests.integrators.crews import Seen

ACCEPT = {"run": "make test"}
CHECKS = ("each", "end")
BASE: Files = {"base.py": "0\n"}


def changes(git: Git, base: str, *names: str) -> list[Outcome]:
    """Return changes that each add a file of their name."""
    return [done(name, change_of(git, base, {**BASE, name: name})) for name in names]


def run(
    git: Git,
    outcomes: list[Outcome],
    passes: Callable[[Seen], bool | None],
    **more: Any,  # noqa: ANN401 -- fields of the integrator
) -> tuple[Merge, Crew]:
    """Return a merge that is tried, which the audit has nothing against, and who tried it."""
    integrator, crew = merging(git, accept=ACCEPT, **more), Crew(git, passes)
    merge = integrator.merge_asking([], outcomes, crew)
    again = partial(run_integrator, integrator, [], ask=Crew(git, passes))
    assert [*map(str, audit(merge, outcomes, [], integrator, again=again))] == []
    return merge, crew


@pytest.fixture
def repo(tmp_path: Path) -> tuple[Git, str]:
    """A repository with one commit."""
    return repository(tmp_path, BASE)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_all_of_it_passes(repo: tuple[Git, str], check: str) -> None:
    """At the end one run is enough; after each change it takes one more than there are changes."""
    merge, crew = run(repo[0], changes(*repo, "a", "b", "c"), lambda _: True, check=check)
    assert (value(merge)["accepted"], merge.shortfalls) == (True, ())
    assert crew.tried == (["c/repo"] if check == "end" else ["the base", "a/repo", "b/repo", "c/repo"])
    assert [row["said"] for row in rows(merge, "acceptance")] == ["green"] * len(crew.tried)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("broken", ["a", "d", "bc", "abcd"])
def test_the_change_that_breaks_it_is_left_out(repo: tuple[Git, str], check: str, broken: str) -> None:
    """Whichever it is, and however many: the rest is merged, and passes."""
    git, base = repo
    names = "abcd"
    merge, crew = run(git, changes(git, base, *names), lambda files: files.keys().isdisjoint(broken), check=check)
    assert set(files_at(git, value(merge)["commit"])) == {*names, "base.py"} - {*broken}
    assert ends(merge) == {name: ("overridden" if name in broken else "merged", None) for name in names}
    assert value(merge)["accepted"] is True
    assert len(merge.shortfalls) == len(broken)
    assert merge.shortfalls[0].startswith(f"{broken[0]}/repo is left out: accept: what passed without it fails with it")
    row = next(row for row in merge.ledger if row.brief == broken[0])
    assert "exit: Exit code 1.\nE assert 1 == 2" in row.reason
    assert crew.tried.count("the base") == 1


@pytest.mark.slow
def test_it_is_looked_for_by_halves(repo: tuple[Git, str]) -> None:
    """Of eight changes it takes the sum, the base, three halves, and what is left."""
    git, base = repo
    crew = Crew(git, lambda files: "c" not in files)
    merge = merging(git, accept=ACCEPT).merge_asking([], changes(git, base, *"abcdefgh"), crew)
    assert ends(merge)["c"] == ("overridden", None)
    assert crew.tried == ["h/repo", "the base", "d/repo", "b/repo", "c/repo", "h/repo"]


@pytest.mark.slow
def test_two_that_break_each_other(repo: tuple[Git, str]) -> None:
    """The one that comes later is left out, since without it all is well."""
    git, base = repo
    merge, _ = run(git, changes(git, base, "a", "b", "c"), lambda files: not {"a", "c"} <= files.keys())
    assert {name: end for name, (end, _) in ends(merge).items()} == {"a": "merged", "b": "merged", "c": "overridden"}


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_nobody_is_blamed_for_a_base_that_fails(repo: tuple[Git, str], check: str) -> None:
    """It is told; and all changes are merged."""
    git, base = repo
    merge, _ = run(git, changes(git, base, "a", "b"), lambda _: False, check=check)
    assert {end for end, _ in ends(merge).values()} == {"merged"}
    assert value(merge)["accepted"] is False
    [told] = merge.shortfalls
    assert told == (
        "The acceptance command fails on what is merged, and on the base as well: no single change can be "
        "blamed; see the table 'acceptance'."
    )


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_a_base_that_fails_until_all_is_there(repo: tuple[Git, str], check: str) -> None:
    """The tests of a whole that is yet to be built fail before, and pass afterwards: all is well."""
    git, base = repo
    merge, _ = run(git, changes(git, base, "a", "b"), lambda files: {"a", "b"} <= files.keys(), check=check)
    assert (value(merge)["accepted"], merge.shortfalls) == (True, ())


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_what_could_not_be_tried_is_told(repo: tuple[Git, str], check: str) -> None:
    """No change is left out for a budget."""
    git, base = repo
    merge, _ = run(git, changes(git, base, "a", "b"), lambda files: None if "a" in files else True, check=check)
    assert {end for end, _ in ends(merge).values()} == {"merged"}
    assert value(merge)["accepted"] is None
    assert merge.shortfalls[0].startswith("The acceptance command could not be run on what is merged up to ")
    assert "budget: There is no more." in merge.shortfalls[0]


@pytest.mark.slow
def test_an_unknown_half_is_passed_over(repo: tuple[Git, str]) -> None:
    """What can't be tried in between accuses nobody; the search goes on behind it."""
    git, base = repo
    names = ("a", "b", "c", "d")

    def passes(files: Seen) -> bool | None:
        return None if files.keys() == {"base.py", "a", "b"} else "d" not in files

    merge, _ = run(git, changes(git, base, *names), passes)
    assert {name for name, (end, _) in ends(merge).items() if end == "overridden"} == {"d"}


@pytest.mark.slow
def test_the_same_tree_is_tried_once(repo: tuple[Git, str]) -> None:
    """Whichever way it came about; and what it is called is the same whatever its changes are called."""
    git, base = repo
    outcomes = [*changes(git, base, "a"), done("idle", None), *changes(git, base, "a")]
    outcomes[-1] = outcomes[-1].model_copy(update={"brief": "twin"})
    _, crew = run(git, outcomes, lambda _: True, check="each")
    assert crew.tried == ["the base", "a/repo"]
    renamed = [outcome.model_copy(update={"brief": f"x{outcome.brief}"}) for outcome in outcomes]
    _, other = run(git, renamed, lambda _: True, check="each")
    assert [each.item.value for each in other.questions] == [each.item.value for each in crew.questions]


def test_what_it_is_likely_to_ask(repo: tuple[Git, str]) -> None:
    """Nothing without a command; once at the end; else once for each change, and for the base."""
    git, _ = repo
    assert merging(git).estimate_queries(4, []) == []
    assert [each.times for each in merging(git, accept=ACCEPT).estimate_queries(4, [])] == [1]
    [asks] = merging(git, accept=ACCEPT, check="each").estimate_queries(4, [])
    assert (asks.times, asks.question.brief.command) == (5, merging(git, accept=ACCEPT).accept)
