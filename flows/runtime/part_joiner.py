"""Joins the answers to the parts of an item: by the integrator that its brief names, or by concatenation."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pydantic import TypeAdapter, ValidationError

from prefect_dispatch.errors import InvalidOutput, JobError, MergeError
from prefect_dispatch.integrators.audit.laws import audit
from prefect_dispatch.integrators.consensus.consensus import Consensus
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.integrators.registry import AnyIntegrator
from prefect_dispatch.integrators.run_merge import prepare_integrator, run_integrator
from prefect_dispatch.models.output_schema import schema_of
from prefect_dispatch.models.validation_messages import describe_expected
from prefect_dispatch.security.escaping import join_names, shorten, value_text
from prefect_dispatch.serialization.json_text import canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome

Joiner = Consensus | MergeRecords
MAX_NAMED = 20
"""Maximum number of removed values that a reason names."""
MAX_SHOWN = 200
"""Maximum characters of such a value."""
_KEY = "{key}"
_WAY_OUT = (
    "give split.join an integrator, such as {kind: merge_records, identity: [name]}; identity: ['{key}'] makes one "
    "record of all parts"
)


class PartJoiner:
    """Joins the answers to the parts of an item, for the briefs with a `split` rule."""

    def __init__(self, briefs: Sequence[Brief], items: Sequence[Item], folder: Path) -> None:
        """Validate the rules, and create the joiners.

        Raises:
            JobError: If a rule can't be applied; the message says what to change.
        """
        self._joiners = {brief.name: _create_joiner(brief, items, folder) for brief in briefs if brief.split}
        for brief in briefs:
            if brief.split and items and not any(brief.split.text(item) is not None for item in items):
                raise JobError(_no_text_message(brief, items[0]))

    def __call__(self, brief: Brief, parts: Sequence[Outcome]) -> tuple[JsonValue, str]:
        """Join the answers to the parts of an item.

        Returns:
            The joined value, and a description of how it was joined.

        Raises:
            InvalidOutput: If the answers can't be joined, or the joined value fails its audit.
        """
        joiner = self._joiners[brief.name]
        values = [part.value for part in parts]
        # 1. Without an integrator, concatenate texts or lists.
        if joiner is None:
            if brief.output == "text":
                return "\n\n".join(map(str, values)), f"{len(parts)} parts, one after another"
            lists = cast("list[list[JsonValue]]", values)
            return _deduplicate(lists), f"{len(parts)} parts, their lists joined without duplicates"
        # 2. An integrator merges the answers of several briefs to one item: pass the parts as such answers.
        samples = [part.model_copy(update={"brief": f"{brief.name}-{n}"}) for n, part in enumerate(parts, 1)]
        briefs = _as_samples(brief, len(parts))
        try:
            merge = run_integrator(joiner, briefs, samples)
        except MergeError as error:
            raise InvalidOutput(f"The answers to its parts can't be joined: {error}", problems=[str(error)]) from None
        # 3. Audit the merge like that of a run.
        if wrong := [*map(str, audit(merge, samples, briefs, joiner))]:
            raise InvalidOutput(f"The joined answer failed its audit: {' '.join(wrong[:5])}", problems=wrong)
        answer = _unwrap_answer(joiner, cast("dict[str, list[JsonValue]]", merge.value), values)
        return answer, f"{len(parts)} parts, joined by {joiner.kind}{_describe_removed(merge)}"


def _create_joiner(brief: Brief, items: Sequence[Item], folder: Path) -> Joiner | None:
    """Return the integrator that joins the answers to the parts of an item; None for concatenation.

    Raises:
        JobError: If the brief names none and its answers can't be concatenated, or the named one can't join parts.
    """
    rule = brief.split.join if brief.split else None
    if rule is None:
        if brief.output == "text" or (schema_of(brief.output) or {}).get("type") == "array":
            return None
        raise JobError(f"Brief {brief.name!r}: split can't join answers that are neither text nor a list; {_WAY_OUT}.")
    try:
        joiner = TypeAdapter[object](AnyIntegrator).validate_python(rule)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, ("split.join", *first["loc"][1:])))
        message = describe_expected(first["type"], first.get("ctx", {}), rule) or first["msg"]
        raise JobError(f"Brief {brief.name!r}: {where}: {message.removeprefix('Value error, ').rstrip('.')}.") from None
    if not isinstance(joiner, Joiner):
        raise JobError(
            f"Brief {brief.name!r}: split.join can't be {rule['kind']!r}, which makes no answer of the brief's form "
            "of several; take 'merge_records' or 'consensus', or leave it out where answers are texts or lists."
        )
    if isinstance(joiner, MergeRecords) and (joiner.aliases or joiner.references):
        what = "'aliases'" if joiner.aliases else "a function"
        raise JobError(
            f"Brief {brief.name!r}: split.join can't use {what}, a change of which no stored answer would notice; "
            "leave that to the job's integrator."
        )
    fewest = max(2, joiner.min_votes) if isinstance(joiner, Consensus) else 2
    return cast("Joiner", prepare_integrator(joiner, _as_samples(brief, fewest), items, folder))


def _describe_removed(merge: Merge) -> str:
    """Describe the values that the rules of a join removed: the report has no other row for them."""
    removed = [(row, loser) for row in merge.fields for loser in row.losers]
    if not removed:
        return ""
    names = [
        f"{row.path.rpartition('/')[2] or row.path} {shorten(value_text(loser.value), MAX_SHOWN)} by {row.rule}"
        for row, loser in removed
    ]
    return f"; removed: {join_names(names, MAX_NAMED)}"


def _as_samples(brief: Brief, parts: int) -> list[Brief]:
    """Return one brief for each part: an integrator merges the answers to parts as those of several briefs."""
    return [brief.model_copy(update={"name": f"{brief.name}-{n}", "sample": n}) for n in range(1, parts + 1)]


def _unwrap_answer(joiner: Joiner, merged: Mapping[str, list[JsonValue]], values: Sequence[JsonValue]) -> JsonValue:
    """Return the merged value of an integrator in the form of a single answer.

    Raises:
        InvalidOutput: If the answers to the parts were not merged into one.
    """
    entries = merged[joiner.entries]
    if isinstance(joiner, MergeRecords):
        if isinstance(values[0], list):
            return entries
        if joiner.records:
            return _nest(joiner.records.split("."), entries)
        if _KEY in joiner.identity:
            entries = [{k: v for k, v in cast("dict[str, JsonValue]", each).items() if k != "key"} for each in entries]
    if len(entries) != 1:
        wrong = f"The answers to its parts make {len(entries)} answers, and not one; {_WAY_OUT}."
        raise InvalidOutput(wrong, problems=[wrong])
    return cast("dict[str, JsonValue]", entries[0])["value"] if isinstance(joiner, Consensus) else entries[0]


def _nest(path: Sequence[str], entries: list[JsonValue]) -> JsonValue:
    value: JsonValue = entries
    for name in reversed(path):
        value = {name: value}
    return value


def _deduplicate(lists: Sequence[list[JsonValue]]) -> list[JsonValue]:
    return list({canonical_json(each): each for values in reversed(lists) for each in reversed(values)}.values())[::-1]


def _no_text_message(brief: Brief, item: Item) -> str:
    """Return the error message for items without a text that could be split."""
    field = brief.split.field if brief.split else ""
    if not isinstance(item.value, dict):
        return f"Brief {brief.name!r}: split cuts text, and item {item.key!r} is none; leave split out."
    offers = ", ".join(repr(name) for name, value in item.value.items() if isinstance(value, str)) or "none"
    has = f"no text at {field!r}" if field else "fields"
    return (
        f"Brief {brief.name!r}: item {item.key!r} has {has}; name the one to cut in split.field. Texts are: {offers}."
    )
