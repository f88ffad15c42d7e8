"""The rules of a consensus in words that a reviewer can contest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.integrators.crowd import ITERATIONS, TOLERANCE
from prefect_dispatch.integrators.votes.answer_kinds import LONGEST_LABEL
from prefect_dispatch.integrators.votes.voting import OUTLYING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_dispatch.integrators.votes.polling import Counting, RuleName

_WHO = (
    "All answers to an item, one from each brief or sample, vote on one answer, field by field where they are objects."
)
_MAJORITY = "the answer that most give"
_LEARNED = "votes weighted by how often a brief agrees with the majority over all items (Wawa, by crowd-kit)"
_DAWID_SKENE = (
    "the answer that the model of Dawid and Skene (1979, by crowd-kit, at most "
    f"{ITERATIONS} rounds, until a vote gains less than {TOLERANCE:g}) finds most probable, each brief having "
    "its own probability of saying one thing where another is right, estimated over all items"
)
_MEAN = (
    f"the mean of the numbers within {OUTLYING} scaled median absolute deviations of their median "
    "(Iglewicz and Hoaglin 1993), rounded where the schema says integer"
)
_RULES = {
    "majority": _MAJORITY,
    "dawid_skene": _DAWID_SKENE,
    "mean": _MEAN,
    "median": "the median of the numbers, rounded where the schema says integer",
    "medoid": "the text most like all the others by rapidfuzz's ratio",
    "priority": "the answer of the brief with the highest priority",
}
_KINDS = (
    f"Numbers become {_MEAN}. Prose (texts over {LONGEST_LABEL} characters or with a line break, or texts of which "
    "none repeats for any item) becomes its medoid, the text most like all the others by rapidfuzz's ratio. Of lists "
    "the one that more than half have stands, else the elements that more than half have in theirs, sorted. Null "
    "stands where more than half say it. A field that some answers lack is decided by those that have it."
)
_SCHEMA = (
    "Where the fields that were voted for don't go together by the briefs' schema, the given answer that has most of "
    "them stands whole, and is flagged."
)
_TIES = (
    "Texts are one answer regardless of case, width and white space, and stand as most write them. Ties go to the "
    "brief of higher priority, then to the answer with the smaller JSON text, and are flagged."
)


def rules_of(method: Counting, rules: Mapping[str, RuleName], weights: Mapping[str, float], *, min_votes: int) -> str:
    """Return the rules of a consensus in a paragraph.

    Example:
        >>> rules_of("majority", {"year": "median"}, {}, min_votes=3).rpartition("flagged. ")[2]
        'An item with fewer than 3 answers is undecided.'
    """
    named = ", ".join(f"{brief!r} {weight:g}" for brief, weight in weights.items())
    words = {**_RULES, "weighted": f"votes weighted by brief ({named}; all others 1)" if weights else _LEARNED}
    parts = [_WHO, f"Labels become {words[method]}.", _KINDS]
    parts += [f"Field {field!r} becomes {words[rule]}." for field, rule in rules.items() if rule != "auto"]
    parts += [_SCHEMA, _TIES]
    if min_votes > 1:
        parts.append(f"An item with fewer than {min_votes} answers is undecided.")
    return " ".join(parts)
