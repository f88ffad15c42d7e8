"""The history that is published: a commit for each change and one for each merge, each saying what it was made for.

A message names the goal of the brief, and its trailers the brief, the item, the agent and the model, so that `git log`
and `git blame` tell who wrote a line and what for. Goals, keys and models are whatever a job or an agent says: each
trailer is one line, in a paragraph of ours at the end, and a goal stands indented, so that no text forges a trailer.

Commits depend on the changes, on the outcomes and on the briefs alone: made again, in whatever order the outcomes came,
they are the same ones. What merging itself goes by are other commits (`lining`, `folding`), without any of this: a
question to an agent that resolves a conflict, and its stored answer, belong to those.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.inert import plain
from prefect_dispatch.ledger import Ref
from prefect_dispatch.scrub import scrub
from prefect_dispatch.template import unescape_template

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prefect_dispatch.integrators.branches.folding import Step
    from prefect_dispatch.integrators.branches.ground import Ground
    from prefect_dispatch.integrators.branches.lining import Branch
    from prefect_dispatch.models import Brief, Outcome

TRAILER = "Prefect-Dispatch-"
"""How the key of each trailer begins."""
LONGEST_TITLE = 72
"""Characters of the first line of a message."""
LONGEST_TRAILER = 200
"""Characters of the value of a trailer."""
LONGEST_GOAL, MOST_LINES = 2_000, 40
"""Characters and lines of a goal that a message has."""
_ANSWERED = re.compile(r"(?P<model>.+) in (?P<agent>[a-z0-9-]+(?: \d[\w.+-]*)?)")
"""How a coding agent is named as who answered: the model, the agent and its version, where it told one."""


class History(NamedTuple):
    """The commits that are published."""

    commit: str
    """The last one: all that was merged. Without a merge, the base."""
    changes: Mapping[Ref, str]
    """The commit of each change, those left out included."""


class Describer:
    """Writes the messages of commits, of what briefs and outcomes say."""

    def __init__(self, outcomes: Iterable[Outcome], briefs: Iterable[Brief]) -> None:
        """Keep what was asked, and who answered.

        Args:
            outcomes: The outcomes.
            briefs: The briefs; of one that isn't there the goal is unknown.
        """
        self._goals = {brief.name: _clean(unescape_template(brief.instructions)) for brief in briefs}
        self._models = {Ref.of(outcome): outcome.model for outcome in outcomes}

    def knows(self, ref: Ref) -> bool:
        """Return whether the goal of a change is known."""
        return ref.brief in self._goals

    def message(self, ref: Ref, start: str = "") -> str:
        """Return the message of the commit of a change.

        Args:
            ref: The outcome that the change is of.
            start: What its title begins with.
        """
        goal = self._goals.get(ref.brief, "")
        title = ": ".join(filter(None, (start + _line(str(ref)), _line(goal.partition("\n")[0]))))
        # What the title doesn't hold is told below it.
        body = _indented(goal) if len(title) > LONGEST_TITLE or "\n" in goal else ""
        return "\n\n".join(filter(None, (_cut(title, LONGEST_TITLE), body, "\n".join(self._trailers(ref, goal)))))

    def _trailers(self, ref: Ref, goal: str) -> Iterator[str]:
        who = self._models.get(ref, "")
        coding = _ANSWERED.fullmatch(who)
        values = {
            "Module": ref.brief,
            "Item": ref.item,
            "Goal": goal,
            "Agent": coding["agent"] if coding else "",
            "Model": coding["model"] if coding else who,
        }
        for name, value in values.items():
            if line := _cut(_line(value), LONGEST_TRAILER):
                yield f"{TRAILER}{name}: {line}"


def write_history(ground: Ground, branches: Iterable[Branch], steps: Sequence[Step], describe: Describer) -> History:
    """Return the commits that are published, once they are written; no branch names them yet.

    Args:
        ground: The repository and the base.
        branches: Every change.
        steps: What became of them, in the order in which they were merged.
        describe: Writes the messages.
    """
    changes = {
        each.ref: ground.commit(each.change.tree, (ground.base,), describe.message(each.ref)) for each in branches
    }
    tip = ground.base
    for step in steps:
        if step.end == "merged":
            ref = step.branch.ref
            tip = ground.commit(step.after.tree, (tip, changes[ref]), describe.message(ref, "Merge "))
    return History(tip, changes)


def _clean(text: str) -> str:
    """Return a text without secrets and control characters, line by line; no more of it than a message has."""
    lines = [plain(line).rstrip() for line in scrub(text).splitlines()]
    return _cut("\n".join(lines[:MOST_LINES]).strip(), LONGEST_GOAL)


def _line(text: str) -> str:
    """Return a text as one line, without secrets and control characters."""
    return scrub(" ".join(plain(text).split()))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
