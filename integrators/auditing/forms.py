"""Whether what was merged still has the form that the briefs ask for."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING

from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from referencing.jsonschema import EMPTY_REGISTRY

from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.merge_records import MergeRecords
from prefect_dispatch.integrators.records.identities import KEY_FIELD
from prefect_dispatch.integrators.values import exact, get, pointer
from prefect_dispatch.ledger import Ref, Violation
from prefect_dispatch.outputs import show_output
from prefect_dispatch.references import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jsonschema.protocols import Validator
    from pydantic import JsonValue

    from prefect_dispatch.ledger import Merge
    from prefect_dispatch.models import Brief, Outcome

_COMBINING = ("anyOf", "oneOf", "not")


def misshapen(
    merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief], integrator: object
) -> Iterator[Violation]:
    """Yield each part of a merged value that its brief's schema refuses.

    Collated answers are held to the schema of their brief; merged records to the one of a record,
    if all their sources have it in common, but for fields that a rule may give another type
    (`union`, `keep_all`, a function). Answers of a pydantic model were validated when they came:
    its validators need not take their own output again.
    """
    outputs = {brief.name: show_output(brief.output) for brief in briefs if not isinstance(brief.output, type)}
    schemas = {name: output for name, output in outputs.items() if not REFERENCE.fullmatch(output)}
    if not isinstance(integrator, (Collate, MergeRecords)):
        return
    found = get(merge.value, [integrator.entries])
    value = found if isinstance(found, list) else []
    if isinstance(integrator, Collate):
        for at, entry in enumerate(value):
            if isinstance(entry, dict) and (schema := schemas.get(str(entry.get("brief")))):
                for path, message, _ in _errors(schema, entry.get("value")):
                    yield _violation((integrator.entries, at, "value", *path), message)
    elif schemas:
        yield from _records(_Shapes(outcomes, integrator), _sources(merge), schemas, value)


class _Shapes:
    """Where a record stands in the answer that it comes from."""

    def __init__(self, outcomes: Sequence[Outcome], integrator: MergeRecords) -> None:
        self.integrator = integrator
        self._outcomes = {(o.brief, o.item): o for o in outcomes}
        self._scopes = integrator.scopes(sorted(outcomes, key=lambda outcome: Ref.of(outcome).order))
        self._said: dict[tuple[str, str], set[object]] = {}
        self._listed: dict[tuple[str, str], set[str] | None] = {}

    def around(self, source: Ref, record: JsonValue) -> tuple[JsonValue, tuple[str | int, ...]] | None:
        """Return an answer like the source's that holds the record alone, and the path to it there."""
        name = (source.brief, source.item)
        if (outcome := self._outcomes.get(name)) is None:
            return None
        if name not in self._said:
            self._said[name] = {scope for scope, part in self._scopes.parts(outcome) if self._is_listed(part, outcome)}
        if not {self._scopes.scope(record, alone=alone) for alone in (False, True)} & self._said[name]:
            return None
        record = self._as_said(record)
        path = self._path
        if not isinstance(get(outcome.value, path), list):
            return record, ()
        answer: JsonValue = [record]
        for step in reversed(path):
            answer = {step: answer}
        return answer, (*path, 0)

    @property
    def _path(self) -> list[str]:
        return self.integrator.records.split(".") if self.integrator.records else []

    def _as_said(self, record: JsonValue) -> JsonValue:
        if self.integrator.identities.by_item and isinstance(record, dict):  # no schema asks for the item's key
            return {name: part for name, part in record.items() if name != KEY_FIELD}
        return record

    def _is_listed(self, part: JsonValue, outcome: Outcome) -> bool:
        """Return whether a part is an element of the list of records, and not what stands beside it."""
        name = (outcome.brief, outcome.item)
        if name not in self._listed:
            found = get(outcome.value, self._path)
            self._listed[name] = {exact(each) for each in found} if isinstance(found, list) else None
        listed = self._listed[name]
        return listed is None or exact(self._as_said(part)) in listed


def _records(
    shapes: _Shapes, sources: dict[str, list[Ref]], schemas: dict[str, str], value: list[JsonValue]
) -> Iterator[Violation]:
    for at, record in enumerate(value):
        refs = sources.get(str(at), [])
        wanted = {schemas.get(ref.brief) for ref in refs}
        schema = wanted.pop() if len(wanted) == 1 else None
        if not schema or not isinstance(record, dict) or not (shape := shapes.around(refs[0], record)):
            continue
        answer, prefix = shape
        loose = {name for name in record if not shapes.integrator.book.keeps_type((name,))}
        for path, message, keyword in _errors(schema, answer):
            inside = path[len(prefix) :]
            if path[: len(prefix)] != prefix or (inside and inside[0] in loose):
                continue
            if loose and not inside and keyword in _COMBINING:  # a field that may have another type can be the cause
                continue
            yield _violation((shapes.integrator.entries, at, *inside), message)


def _sources(merge: Merge) -> dict[str, list[Ref]]:
    """Return the sources of each entry of the merged list, by its index."""
    found: dict[str, dict[Ref, None]] = {}
    for row in merge.fields:
        _, _, at, *_ = [*row.path.split("/"), "", ""]
        found.setdefault(at, {}).update(dict.fromkeys(row.sources))
    return {at: sorted(refs, key=lambda ref: ref.order) for at, refs in found.items()}


def _errors(schema: str, value: JsonValue) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """Yield path, message and failed keyword of each error."""
    if schema == "text":
        if not isinstance(value, str):
            yield (), "It must be text.", "type"
        return
    for error in _validator(schema).iter_errors(value):
        yield tuple(error.absolute_path), error.message, str(error.validator)


@lru_cache(maxsize=256)
def _validator(text: str) -> Validator:
    schema = json.loads(text)
    return validator_for(schema, default=Draft202012Validator)(schema, registry=EMPTY_REGISTRY)


def _violation(path: tuple[str | int, ...], message: str) -> Violation:
    return Violation(law="schema", where=pointer(*path), message=message)
