"""The audit of a consensus: every vote counted once more, from the outcomes rather than from what the merge says."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.integrators.records.rules import Claim
from prefect_dispatch.integrators.values import content, exact, get
from prefect_dispatch.integrators.votes.voting import COMPUTED, ELEMENTS, elements, is_number, opinion
from prefect_dispatch.ledger import Ref, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.ledger import FieldRow, Merge
    from prefect_dispatch.models import Outcome


def recount(
    merge: Merge, outcomes: Sequence[Outcome], *, decided: str, undecided: str, min_votes: int
) -> Iterator[Violation]:
    """Yield what differs from a count of the outcomes' own votes.

    Each item that was answered has one entry, in the right list. Each field row is about votes on
    that item, and names all agents that voted on its field. What a computed rule gives, what most
    say and what more than half have in their lists are found again.

    Args:
        merge: What was merged.
        outcomes: What it was made of.
        decided: Where, in the merged value, the answers stand.
        undecided: Where the items with too few answers stand.
        min_votes: How many answers are enough.
    """
    answered: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.status == "succeeded":
            answered[outcome.item].append(outcome)
    entries = _entries(merge, (decided, undecided))
    votes = {item: len(said) for item, said in answered.items()}
    yield from _misplaced(entries, votes, {item for item, count in votes.items() if count >= min_votes}, decided)
    for row in merge.fields:
        head = _head(row.path)
        item = entries.get((head.name, head.at)) if head else None
        if head is None or item is None:
            yield _wrong("precision", row.path, "a field row is about no answer.")
        else:
            yield from _row(row, _votes(answered[item], head.path))


def _entries(merge: Merge, names: Sequence[str]) -> dict[tuple[str, str], str]:
    """Return the item of each entry of the merged value, by its list and place."""
    entries: dict[tuple[str, str], str] = {}
    for name in names:
        found = get(merge.value, [name])
        for at, entry in enumerate(found if isinstance(found, list) else []):
            entries[name, str(at)] = str(get(entry, ["item"]))
    return entries


def _misplaced(
    entries: Mapping[tuple[str, str], str], answers: Mapping[str, int], enough: set[str], decided: str
) -> Iterator[Violation]:
    listed = Counter(entries.values())
    for item in sorted(answers.keys() | listed.keys()):
        if listed[item] != (item in answers):
            yield _wrong("recall", item, f"it has {answers.get(item, 0)} answers and {listed[item]} entries.")
    for (name, at), item in entries.items():
        if item in answers and (item in enough) != (name == decided):
            yield _wrong("precision", f"/{name}/{at}", f"{answers[item]} answers don't put it there.")


class _Head(NamedTuple):
    name: str
    at: str
    path: tuple[str, ...]


def _head(path: str) -> _Head | None:
    """Return the list and the place in it that a row is about, and the field of the answer."""
    tokens = [token.replace("~1", "/").replace("~0", "~") for token in path.split("/")[1:]]
    return _Head(tokens[0], tokens[1], tuple(tokens[3:])) if tokens[2:3] == ["value"] else None


def _votes(outcomes: Sequence[Outcome], path: tuple[str, ...]) -> dict[Ref, JsonValue]:
    """Return what each agent says at a path; whoever has no such field has no vote."""
    votes: dict[Ref, JsonValue] = {}
    for outcome in outcomes:
        around = get(outcome.value, path[:-1])
        if not path or (isinstance(around, dict) and path[-1] in around):
            votes[Ref.of(outcome)] = get(outcome.value, path)
    return votes


def _row(row: FieldRow, votes: Mapping[Ref, JsonValue]) -> Iterator[Violation]:
    named = {source for sources in (row.sources, *(loser.sources for loser in row.losers)) for source in sources}
    if named != set(votes):
        missing = sorted(votes.keys() ^ named, key=lambda ref: ref.order)
        yield _wrong("recall", row.path, f"its row and the votes on it differ by {', '.join(map(str, missing))}.")
        return
    if row.rule in COMPUTED:
        numbers = [value for _, value in sorted(votes.items(), key=lambda vote: vote[0].order) if is_number(value)]
        expected = COMPUTED[row.rule](numbers) if numbers else None  # type: ignore[arg-type]
        if content(expected) != content(row.winner):
            yield _wrong("precision", row.path, f"{row.rule!r} of what was said gives {exact(expected)}.")
    elif row.rule == ELEMENTS:
        claims = [
            Claim(value, content(value), ref, value, (0, 0, "", at)) for at, (ref, value) in enumerate(votes.items())
        ]
        if content(elements(claims)) != content(row.winner):
            yield _wrong("precision", row.path, "it isn't what more than half have in their lists.")
    elif row.rule == "majority":
        counts = Counter(map(opinion, votes.values()))
        if counts[opinion(row.winner)] < max(counts.values(), default=0):
            yield _wrong("precision", row.path, "another answer has more votes.")


def _wrong(law: str, where: str, message: str) -> Violation:
    return Violation.model_validate({"law": law, "where": where, "message": message})
