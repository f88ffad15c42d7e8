"""The rules of a merge of changes, in a paragraph that a reviewer can contest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_dispatch.command import Command
    from prefect_dispatch.integrators.branches.folding import Rule

_ORDER = (
    "Changes of one base are merged one after another: by the priority of their briefs, then of their items, then in "
    "the order of every list. Of equal changes the first one counts. Files are compared path by path, and line by line "
    "where both sides changed one; a renamed file counts as one deleted and one added."
)
_CONFLICTS = {
    "priority": "Where changes contradict each other, the one that comes first counts: of a file with lines for each "
    "group of lines by itself, of any other for the whole file.",
    "skip": "A change that contradicts an earlier one is left out whole.",
    "fail": "A change that contradicts an earlier one is left out whole, and the run fails.",
    "agent": "Where changes contradict each other on lines, an agent brings them together; it may touch only the files "
    "concerned, and must leave no marker. If it can't, the later change is left out whole. Of any other file the one "
    "counts that comes first.",
}
_EACH = (
    "The acceptance command is run on the base, and after each change: one after which what passed fails is left out."
)
_END = (
    "The acceptance command is run on what is merged. If it fails, and passes on the base, the first change after "
    "which it fails is looked for by halves and left out, and so on; if it fails on the base, too, none is left out."
)


def rules_of(rule: Rule, accept: Command | None, check: str) -> str:
    """Return the rules.

    Example:
        >>> rules_of("skip", None, "end")[-59:]
        'A change that contradicts an earlier one is left out whole.'
    """
    tried = "" if accept is None else _EACH if check == "each" else _END
    return " ".join(filter(None, (_ORDER, _CONFLICTS[rule], tried)))
