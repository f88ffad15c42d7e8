"""What the commits of a merge say: goal, brief, item, agent and model, whatever anybody writes into these."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.integrators.merge_branches.apply import RepositoryBase, apply_change, initial_state, order_changes
from prefect_dispatch.integrators.merge_branches.publish_branch import (
    MAX_GOAL_CHARS,
    MAX_TITLE_CHARS,
    MAX_TRAILER_CHARS,
    CommitMessages,
)
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import escape_template
from prefect_dispatch.models.ledger import Ref
from tests.integrators.repos import Files, Nobody, change_of, done, merging, repository, rows, value

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.integrators.merge_branches.apply import Branch, MergeState, Resolution
    from prefect_dispatch.integrators.merge_branches.three_way import MergedTree
    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.workspaces.git import Git

BASE: Files = {"a.py": "1\n2\n3\n"}
LEXER = Brief(name="lexer", instructions="Split a text into {{tokens}}.")
PARSER = Brief(name="parser", instructions="Make a tree.\n\n- of tokens\n- and no more")
AGENT = "anthropic/claude-sonnet-4-5 in claude 2.1.197"


@pytest.fixture
def repo(tmp_path: Path) -> tuple[Git, str]:
    """A repository with one commit."""
    return repository(tmp_path, BASE)


def outcomes(git: Git, base: str) -> list[Outcome]:
    """Return two changes, by two agents."""
    lexer = done("lexer", change_of(git, base, {**BASE, "lexer.py": "x\n"}), item="modules")
    parser = done("parser", change_of(git, base, {**BASE, "parser.py": "y\n"}), item="modules")
    return [
        lexer.model_copy(update={"model": AGENT}),
        parser.model_copy(update={"model": "openai/gpt-5 in codex"}),
    ]


def merged(git: Git, changes: list[Outcome], *briefs: Brief) -> Merge:
    """Return a merge that its own audit has nothing against."""
    integrator = merging(git)
    merge = integrator.merge_asking(briefs, changes, Nobody())
    assert [*integrator.verify(merge, changes, briefs)] == []
    return merge


def message(git: Git, commit: str) -> str:
    """Return what a commit says."""
    return git.output("log", "-1", "--format=%B", commit).rstrip("\n")


def trailers(git: Git, commit: str) -> list[str]:
    """Return the trailers of a commit, as git finds them."""
    return git.output("log", "-1", "--format=%(trailers:only,unfold)", commit).strip().splitlines()


def test_what_commits_say(repo: tuple[Git, str]) -> None:
    """A commit for each change and one for each merge: goal and module in its title, all of it in its trailers."""
    git, base = repo
    merge = merged(git, outcomes(git, base), LEXER, PARSER)
    tip = value(merge)["commit"]
    assert {*git.output("log", "--format=%s", f"{base}..{tip}").splitlines()} == {
        "Merge parser/modules: Make a tree.",
        "parser/modules: Make a tree.",
        "Merge lexer/modules: Split a text into {tokens}.",
        "lexer/modules: Split a text into {tokens}.",
    }
    who = [
        "Prefect-Dispatch-Module: lexer",
        "Prefect-Dispatch-Item: modules",
        "Prefect-Dispatch-Goal: Split a text into {tokens}.",
        "Prefect-Dispatch-Agent: claude 2.1.197",
        "Prefect-Dispatch-Model: anthropic/claude-sonnet-4-5",
    ]
    lexer, parser = (row["commit"] for row in rows(merge, "branches"))
    assert trailers(git, lexer) == trailers(git, f"{tip}^") == who
    assert message(git, lexer) == "\n".join(["lexer/modules: Split a text into {tokens}.", "", *who])
    assert "\n\n    Make a tree.\n\n    - of tokens\n    - and no more\n\nPrefect-Dispatch-Module: parser\n" in message(
        git, parser
    )
    assert "Prefect-Dispatch-Agent: codex" in trailers(git, parser)
    assert git.output("rev-parse", f"{tip}^2") == parser
    assert git.output("merge-base", "--is-ancestor", lexer, tip) == ""


@pytest.mark.slow
def test_equal_outcomes_make_equal_commits(repo: tuple[Git, str]) -> None:
    """In whatever order outcomes and briefs come; another goal or model makes others, of the same tree."""
    git, base = repo
    changes = outcomes(git, base)
    same = {
        value(merged(git, [*some], *briefs))["commit"]
        for some in permutations(changes)
        for briefs in permutations((LEXER, PARSER))
    }
    assert len(same) == 1
    other = merged(git, changes, LEXER.model_copy(update={"instructions": "Else."}), PARSER)
    assert value(other)["commit"] not in same
    assert git.output("rev-parse", f"{value(other)['commit']}^{{tree}}") == value(other)["tree"]
    changes[0] = changes[0].model_copy(update={"model": "openai/x"})
    merge = merged(git, changes, LEXER, PARSER)
    lexer = rows(merge, "branches")[0]["commit"]
    assert [each for each in trailers(git, lexer) if "Agent" in each or "Model" in each] == [
        "Prefect-Dispatch-Model: openai/x"
    ]


HOSTILE = (
    "Add it.\n\nPrefect-Dispatch-Agent: forged\nSigned-off-by: Me <me@example.org>\n---\n"
    "diff --git a/x b/x\n\x1b[31m\u202e"
)


def test_no_text_forges_a_trailer(repo: tuple[Git, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a goal, nor the key of an item, nor the name of a model; lines, lengths and secrets are bounded."""
    monkeypatch.setenv("SOME_API_KEY", "key-of-somebody")
    git, base = repo
    brief = Brief(name="a", instructions=escape_template(f"{HOSTILE}\nkey-of-somebody\n" + "long words " * 1000))
    change = change_of(git, base, {**BASE, "b.py": "x\n"})
    outcome = done("a", change, item=f"k\nSigned-off-by: You <you@example.org>\n\n{'k' * 900}")
    outcome = outcome.model_copy(update={"model": f"m\r\nAcked-by: a\n{'m' * 300}"})
    tip = value(merged(git, [outcome], brief))["commit"]
    for commit in (tip, f"{tip}^2"):
        found = trailers(git, commit)
        assert [each.partition(": ")[0] for each in found] == [
            f"Prefect-Dispatch-{name}" for name in ("Module", "Item", "Goal", "Model")
        ]
        assert all(len(each.partition(": ")[2]) <= MAX_TRAILER_CHARS for each in found)
        title, *body = message(git, commit).splitlines()
        assert len(title) <= MAX_TITLE_CHARS
        assert all(line.startswith("    ") or not line for line in body[: -len(found)])
        assert all(line.isprintable() for line in body)
        assert "key-of-somebody" not in message(git, commit)
        assert len(message(git, commit)) < 2 * MAX_GOAL_CHARS


@pytest.mark.slow
def test_a_change_whose_brief_is_not_there(repo: tuple[Git, str]) -> None:
    """Its commit says what is known; the merge is found right by its tree, and one of another tree is not."""
    git, base = repo
    changes = outcomes(git, base)
    integrator = merging(git)
    merge = integrator.merge_asking([LEXER, PARSER], changes, Nobody())
    assert [*integrator.verify(merge, changes, [])] == []
    bent = merge.model_copy(update={"value": {**value(merge), "commit": base}})
    assert "/commit" in [each.where for each in integrator.verify(bent, changes, [])]
    gone = merge.model_copy(update={"value": {**value(merge), "commit": "1" * 40}})
    assert "/commit" in [each.where for each in integrator.verify(gone, changes, [])]
    swapped = merge.model_copy(update={"value": {**value(merge), "commit": rows(merge, "branches")[0]["commit"]}})
    assert "/commit" in [each.where for each in integrator.verify(swapped, changes, [LEXER, PARSER])]
    silent = CommitMessages(changes, []).message(Ref(brief="lexer", item="modules"))
    assert silent.startswith("lexer/modules\n\nPrefect-Dispatch-Module: lexer\n")


@pytest.mark.slow
def test_a_merge_of_an_earlier_version_is_right(repo: tuple[Git, str]) -> None:
    """Its commits said nothing but the brief and the item; what is stored of it stands the audit."""
    git, base = repo
    changes = outcomes(git, base)
    merge = merged(git, changes, LEXER, PARSER)
    ground = RepositoryBase.of(git, base)
    standing = initial_state(ground)
    for branch in order_changes(git, changes).branches:
        standing = apply_change(ground, standing, branch, "priority", unasked).state
    earlier = merge.model_copy(update={"value": {**value(merge), "commit": standing.commit}})
    assert message(git, standing.commit) == "Merge parser/modules"
    assert standing.commit != value(merge)["commit"]
    assert [*merging(git).verify(earlier, changes, [LEXER, PARSER])] == []


def unasked(state: MergeState, branch: Branch, merged: MergedTree) -> Resolution:
    """Refuse to resolve anything."""
    raise AssertionError(state, branch, merged)
