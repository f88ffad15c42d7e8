"""How the answers to the parts of an item become one: by the integrator that its brief names, or as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pydantic import TypeAdapter, ValidationError

from prefect_dispatch.errors import InvalidOutput, JobError, MergeError
from prefect_dispatch.fingerprint import canonical
from prefect_dispatch.inert import shown
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.consensus import Consensus
from prefect_dispatch.integrators.kinds import AnyIntegrator
from prefect_dispatch.integrators.merge_records import MergeRecords
from prefect_dispatch.integrators.merging import merge_by
from prefect_dispatch.integrators.readiness import ready
from prefect_dispatch.outputs import schema_of
from prefect_dispatch.wrong_values import describe_expected

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.ledger import Merge
    from prefect_dispatch.models import Brief, Item, Outcome

Joiner = Consensus | MergeRecords
MOST_TOLD = 20
"""Values that a join removed, at most, that are named."""
MOST_SHOWN = 200
"""Characters of one that are shown."""
_KEY = "{key}"
_WAY_OUT = (
    "give split.join an integrator, such as {kind: merge_records, identity: [name]}; identity: ['{key}'] makes one "
    "record of all parts"
)


class Joins:
    """How each brief that has a rule for items that are too long joins the answers to their parts."""

    def __init__(self, briefs: Sequence[Brief], items: Sequence[Item], folder: Path) -> None:
        """Check that every such rule can be followed.

        Raises:
            JobError: If one can't; the message says what to change.
        """
        self._joiners = {brief.name: _joiner(brief, items, folder) for brief in briefs if brief.split}
        for brief in briefs:
            if brief.split and items and not any(brief.split.text(item) is not None for item in items):
                raise JobError(_no_text(brief, items[0]))

    def __call__(self, brief: Brief, parts: Sequence[Outcome]) -> tuple[JsonValue, str]:
        """Return the value that the answers to the parts of an item make, and in words how.

        Raises:
            InvalidOutput: If they make none.
        """
        joiner = self._joiners[brief.name]
        values = [part.value for part in parts]
        if joiner is None:
            if brief.output == "text":
                return "\n\n".join(map(str, values)), f"{len(parts)} parts, one after another"
            lists = cast("list[list[JsonValue]]", values)
            return _distinct(lists), f"{len(parts)} parts, their lists joined without duplicates"
        said = [part.model_copy(update={"brief": f"{brief.name}-{n}"}) for n, part in enumerate(parts, 1)]
        briefs = _as_samples(brief, len(parts))
        try:
            merge = merge_by(joiner, briefs, said)
        except MergeError as error:
            raise InvalidOutput(f"The answers to its parts can't be joined: {error}", problems=[str(error)]) from None
        if wrong := [*map(str, audit(merge, said, briefs, joiner))]:
            raise InvalidOutput(f"The joined answer failed its audit: {' '.join(wrong[:5])}", problems=wrong)
        answer = _answer(joiner, cast("dict[str, list[JsonValue]]", merge.value), values)
        return answer, f"{len(parts)} parts, joined by {joiner.kind}{_removed(merge)}"


def _joiner(brief: Brief, items: Sequence[Item], folder: Path) -> Joiner | None:
    """Return who joins the answers to the parts of an item; None where they are joined as they are."""
    named = brief.split.join if brief.split else None
    if named is None:
        if brief.output == "text" or (schema_of(brief.output) or {}).get("type") == "array":
            return None
        raise JobError(f"Brief {brief.name!r}: split can't join answers that are neither text nor a list; {_WAY_OUT}.")
    try:
        joiner = TypeAdapter[object](AnyIntegrator).validate_python(named)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, ("split.join", *first["loc"][1:])))
        message = describe_expected(first["type"], first.get("ctx", {}), named) or first["msg"]
        raise JobError(f"Brief {brief.name!r}: {where}: {message.removeprefix('Value error, ').rstrip('.')}.") from None
    if not isinstance(joiner, Joiner):
        raise JobError(
            f"Brief {brief.name!r}: split.join can't be {named['kind']!r}, which makes no answer of the brief's form "
            "of several; take 'merge_records' or 'consensus', or leave it out where answers are texts or lists."
        )
    if isinstance(joiner, MergeRecords) and (joiner.aliases or joiner.references):
        what = "'aliases'" if joiner.aliases else "a function"
        raise JobError(
            f"Brief {brief.name!r}: split.join can't use {what}, a change of which no stored answer would notice; "
            "leave that to the job's integrator."
        )
    fewest = max(2, joiner.min_votes) if isinstance(joiner, Consensus) else 2
    return cast("Joiner", ready(joiner, _as_samples(brief, fewest), items, folder))


def _removed(merge: Merge) -> str:
    """Return what rules removed of what was said of a part: the report has no other row for it."""
    lost = [(row, loser) for row in merge.fields for loser in row.losers]
    if not lost:
        return ""
    told = [f"{row.path.rpartition('/')[2] or row.path} {_short(loser.value)} by {row.rule}" for row, loser in lost]
    more = f" and {len(lost) - MOST_TOLD} more" if len(lost) > MOST_TOLD else ""
    return f"; removed: {', '.join(told[:MOST_TOLD])}{more}"


def _short(value: JsonValue) -> str:
    text = shown(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"


def _as_samples(brief: Brief, parts: int) -> list[Brief]:
    """Return what an integrator takes the answers to parts for: those of so many briefs to the item."""
    return [brief.model_copy(update={"name": f"{brief.name}-{n}", "sample": n}) for n in range(1, parts + 1)]


def _answer(joiner: Joiner, merged: Mapping[str, list[JsonValue]], values: Sequence[JsonValue]) -> JsonValue:
    """Return what an integrator merged in the form of a single answer.

    Raises:
        InvalidOutput: If the parts' answers did not become one.
    """
    entries = merged[joiner.entries]
    if isinstance(joiner, MergeRecords):
        if isinstance(values[0], list):
            return entries
        if joiner.records:
            return _at(joiner.records.split("."), entries)
        if _KEY in joiner.identity:
            entries = [{k: v for k, v in cast("dict[str, JsonValue]", each).items() if k != "key"} for each in entries]
    if len(entries) != 1:
        wrong = f"The answers to its parts make {len(entries)} answers, and not one; {_WAY_OUT}."
        raise InvalidOutput(wrong, problems=[wrong])
    return cast("dict[str, JsonValue]", entries[0])["value"] if isinstance(joiner, Consensus) else entries[0]


def _at(path: Sequence[str], entries: list[JsonValue]) -> JsonValue:
    value: JsonValue = entries
    for name in reversed(path):
        value = {name: value}
    return value


def _distinct(lists: Sequence[list[JsonValue]]) -> list[JsonValue]:
    return list({canonical(each): each for values in reversed(lists) for each in reversed(values)}.values())[::-1]


def _no_text(brief: Brief, item: Item) -> str:
    """Return why no item has a text that could be cut, and what to change."""
    field = brief.split.field if brief.split else ""
    if not isinstance(item.value, dict):
        return f"Brief {brief.name!r}: split cuts text, and item {item.key!r} is none; leave split out."
    offers = ", ".join(repr(name) for name, value in item.value.items() if isinstance(value, str)) or "none"
    has = f"no text at {field!r}" if field else "fields"
    return (
        f"Brief {brief.name!r}: item {item.key!r} has {has}; name the one to cut in split.field. Texts are: {offers}."
    )
