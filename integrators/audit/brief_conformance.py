"""Comparison of a merged value with what the briefs require: output schema, checks, scope and constraints.

Each answer satisfied its brief when it was received. A merge may change that: fields of several answers are combined,
lists are collected, and a model writes a text of its own. What an audit can't tell is reported as not checkable, never
as met; a violation leaves the value as it is, as it follows from the rules of the merge, and the run completes with
gaps.

Which parts of a value are answers follows from its form: the entries of its lists that have a `value`, and the
records of an integrator that merges records, where a record is a whole answer.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_dispatch.errors import BriefError
from prefect_dispatch.executors.base import original_name
from prefect_dispatch.integrators.base import BaseIntegrator, RecordIntegrator, RuleOpinion
from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.consensus.consensus import Consensus
from prefect_dispatch.integrators.consensus.vote_rules import schema_errors
from prefect_dispatch.integrators.merge_branches.merge_branches import MergeBranches
from prefect_dispatch.integrators.merge_records.identities import ITEM_KEY, KEY_FIELD
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.integrators.merge_records.schema_conformance import (
    SCHEMA_FLAG_KIND,
    iter_schema_violations,
    schemas_of,
)
from prefect_dispatch.integrators.run_merge import gc_paused
from prefect_dispatch.integrators.synthesize.output_format import CITED
from prefect_dispatch.models.checks import Function, MustMention, Sources
from prefect_dispatch.models.globs import Glob, matches_path
from prefect_dispatch.models.imports import REFERENCE
from prefect_dispatch.models.item import Item, placeholders, unescape_template
from prefect_dispatch.models.ledger import MAX_PLACES, Ref, Requirement, RequirementPlace, make_ref
from prefect_dispatch.models.output_schema import schema_of
from prefect_dispatch.security.escaping import count_noun, join_names, shorten, value_text
from prefect_dispatch.security.redaction import redact, safe_message
from prefect_dispatch.serialization.json_values import get_at, pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.checks import Check
    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome

    _Problem = Callable[["_Part", tuple[Ref, ...]], str | None]
    """Returns what is wrong with a part, given those of its sources that answer the brief, or raises `_Unknown`."""

_LONGEST = 500
"""Characters of a problem or a requirement that are reported."""
_LISTED = 8
"""Names of fields or globs that a requirement lists."""
_WRITTEN = "A model wrote the merged value from the answers, so that no part of it is an answer to this brief."
_TAKEN_APART = "No part of the merged value is a whole answer to this brief."
_NO_JUDGE = "It is in words, and there is no judge."
_NO_ITEMS = "It depends on the items, which aren't known here."
_UNUSED = Item(key="-", value=None)
"""The item for checks that don't depend on any."""
_SCOPE_RULE = "It states nothing outside of the scope in which the answers were asked for: {}"


class _Unknown(Exception):  # noqa: N818 -- no failure: a part can't be compared, and why
    """A part of the value can't be compared with a requirement."""


class _Part(NamedTuple):
    """A part of the merged value that has the form of an answer."""

    path: str
    value: JsonValue
    sources: tuple[Ref, ...]


@gc_paused()
def check_requirements(
    merge: Merge,
    outcomes: Sequence[Outcome],
    briefs: Sequence[Brief],
    integrator: object,
    *,
    items: Iterable[Item] = (),
    ask: Asker | None = None,
) -> tuple[Requirement, ...]:
    """Return what the briefs require of the merged value, each with its verdict.

    Args:
        merge: The merge, after its audit.
        outcomes: The outcomes that it was made of, in any order.
        briefs: The briefs of the job; samples of one brief count as one.
        integrator: The integrator.
        items: The items, as far as they are known; what depends on others can't be checked.
        ask: Runs the queries of the integrator's judge. None: no judge is asked.

    Returns:
        The requirements, by brief; in the order in which a brief states them.
    """
    by_name: dict[str, Brief] = {}
    for brief in sorted(briefs, key=lambda each: each.name):
        by_name.setdefault(original_name(brief), brief)
    subject = _Subject(merge, outcomes, briefs, integrator, items)
    found = [row for name, brief in by_name.items() for row in subject.check_brief(name, brief)]
    found += [_in_words("", "constraint", text) for text in BaseIntegrator.of(integrator).own_constraints()]
    return tuple(_judge_rules(found, merge, outcomes, BaseIntegrator.of(integrator), ask))


class _Subject:
    """The merged value, with its parts that are answers."""

    def __init__(
        self,
        merge: Merge,
        outcomes: Sequence[Outcome],
        briefs: Sequence[Brief],
        integrator: object,
        items: Iterable[Item],
    ) -> None:
        """Find the parts.

        Args:
            merge: The merge.
            outcomes: The outcomes.
            briefs: The briefs.
            integrator: The integrator.
            items: The items that are known.
        """
        self._merge, self._integrator = merge, integrator
        self._names = {brief.name: original_name(brief) for brief in briefs}
        self._schemas = schemas_of(briefs)
        self._all_outcomes, self._all_items = outcomes, items
        self._is_written = any(row.rule == CITED for row in merge.fields)
        self._sources = _sources_by_entry(merge)
        self._parts = [] if self._is_written else [*self._list_parts()]

    @cached_property
    def _outcomes(self) -> dict[Ref, Outcome]:
        """The outcomes; most comparisons need none of them."""
        return {Ref.of(outcome): outcome for outcome in self._all_outcomes}

    @cached_property
    def _items(self) -> dict[str, Item]:
        """The known items by their keys, for what depends on them."""
        return {item.key: item for item in self._all_items}

    def check_brief(self, name: str, brief: Brief) -> Iterator[Requirement]:
        """Yield the requirements of a brief.

        Args:
            name: The name under which they are reported.
            brief: The brief, or its first sample.
        """
        parts = [
            (part, refs)
            for part in self._parts
            if (refs := tuple(ref for ref in part.sources if self._names.get(ref.brief) == name))
        ]
        yield self._check_output(name, brief, parts)
        for check in brief.checks:
            yield self._compare(name, "check", _describe_check(check), parts, self._check_finder(check))
        if brief.scope:
            yield _in_words(name, "scope", brief.scope)
        if brief.writes and isinstance(self._integrator, MergeBranches):
            yield self._check_writes(name, brief)
        yield from (_in_words(name, "constraint", text) for text in brief.constraints)

    def _list_parts(self) -> Iterator[_Part]:
        """Yield the parts of the value that are answers, in the order of the value."""
        value = self._merge.value
        records = self._integrator.entries if isinstance(self._integrator, RecordIntegrator) else None
        for name, entries in value.items() if isinstance(value, dict) else ():
            for at, entry in enumerate(entries) if isinstance(entries, list) else ():
                refs = self._sources.get(pointer(name, at), ())
                if name == records and (record := self._as_answer(entry, refs)) is not None:
                    yield _Part(pointer(name, at), record, refs)
                elif records is None and isinstance(entry, dict) and "value" in entry:
                    refs = refs or self._named_source(entry)
                    yield _Part(pointer(name, at, "value"), self._add_vote_fields(entry["value"], refs), refs)

    def _add_vote_fields(self, value: JsonValue, refs: Sequence[Ref]) -> JsonValue:
        """Return a decided answer with the fields that say who voted on what, which each of its answers has."""
        if not (isinstance(self._integrator, Consensus) and self._integrator.vote_fields and isinstance(value, dict)):
            return value
        answers = [self._outcomes[ref].value for ref in refs if ref in self._outcomes]
        names = self._integrator.vote_fields
        return {name: get_at(answer, [name]) for answer in answers[:1] for name in names} | value

    def _named_source(self, entry: Mapping[str, JsonValue]) -> tuple[Ref, ...]:
        """Return the outcome that an entry names, for a merge without field rows."""
        ref = make_ref(str(entry.get("brief")), str(entry.get("item")))
        return (ref,) if ref in self._outcomes else ()

    def _as_answer(self, record: JsonValue, refs: Sequence[Ref]) -> JsonValue:
        """Return a merged record as an answer would have it; None if its answers have lists of records."""
        answers = [self._outcomes[ref].value for ref in refs if ref in self._outcomes]
        is_whole = all(isinstance(answer, dict) for answer in answers) and not getattr(self._integrator, "records", "")
        if not (is_whole and isinstance(record, dict)):
            return None
        if ITEM_KEY in getattr(self._integrator, "identity", ()) and not any(
            isinstance(answer, dict) and KEY_FIELD in answer for answer in answers
        ):
            return {name: part for name, part in record.items() if name != KEY_FIELD}
        return record

    def _check_output(self, name: str, brief: Brief, parts: Sequence[tuple[_Part, tuple[Ref, ...]]]) -> Requirement:
        """Return the verdict on the form of the answers."""
        text = _describe_output(brief)
        schema = self._schemas.get(brief.name)
        if schema is not None and isinstance(self._integrator, MergeRecords):
            return self._read_record_flags(name, text)
        if schema is not None and isinstance(self._integrator, Collate):
            # The audit compared each answer with its schema, and would have found a violation of that law.
            return _requirement(
                name, "output", text, checked=len(parts), unknown=0, places=(), note="" if parts else _TAKEN_APART
            )

        def find(part: _Part, refs: tuple[Ref, ...]) -> str | None:
            if schema is not None:
                return next((fault.message for fault in iter_schema_violations(schema, part.value)), None)
            if isinstance(brief.output, str):
                raise _Unknown(f"The code of {brief.output!r} isn't loaded.")
            answers = [self._outcomes[ref].value for ref in refs]
            return next(iter(schema_errors(brief.output, part.value, answers)), None)

        return self._compare(name, "output", text, parts, find)

    def _read_record_flags(self, name: str, text: str) -> Requirement:
        """Return the verdict on the form of merged records: the audit requires a flag for each that violates it."""
        flagged = [flag for flag in self._merge.flags if flag.kind == SCHEMA_FLAG_KIND]
        places = [
            RequirementPlace(path=flag.path, sources=flag.sources[:MAX_PLACES], message=flag.message)
            for flag in flagged
            if any(self._names.get(ref.brief) == name for ref in flag.sources)
        ]
        resting = [refs for refs in self._sources.values() if any(self._names.get(ref.brief) == name for ref in refs)]
        # The audit compares a record only with a schema that all its answers share.
        mixed = sum(len({self._schemas.get(ref.brief) for ref in refs}) > 1 for refs in resting)
        free = self._fields_of_any_type
        notes = (
            f"{mixed} of {count_noun(len(resting), 'record')} come from briefs with different schemas."
            if mixed
            else "",
            f"Exempt, as a rule may change the type: {join_names(map(repr, free), _LISTED)}." if free else "",
        )
        note = " ".join(filter(None, notes))
        return _requirement(name, "output", text, checked=len(resting) - mixed, unknown=mixed, places=places, note=note)

    @cached_property
    def _fields_of_any_type(self) -> list[str]:
        """The fields of merged records to which a rule may give another type than an answer has."""
        if not isinstance(self._integrator, MergeRecords):
            return []
        records = get_at(self._merge.value, [self._integrator.entries])
        names = dict.fromkeys(
            name for each in (records if isinstance(records, list) else ()) if isinstance(each, dict) for name in each
        )
        book = self._integrator.book
        return sorted(name for name in names if not book.keeps_type((name,)))

    def _require_same_type(self, check: Check, part: _Part) -> None:
        """Check that a rule has not given the part that a check is about another type than every answer has.

        Raises:
            _Unknown: If it has: the check was written for the type of the answers.
        """
        field = getattr(check, "field", "").partition(".")[0]
        for name in self._fields_of_any_type:
            if field in ("", name):
                types = {type(get_at(self._outcomes[ref].value, [name])) for ref in part.sources}
                if type(get_at(part.value, [name])) not in types:
                    raise _Unknown(f"A rule gave {name!r} another type than the answers have.")

    def _check_finder(self, check: Check) -> _Problem:
        """Return the function that finds what is wrong with a part by a check.

        A part that several items share satisfies a check that depends on the item if it does so for one of them: it
        could be the answer to that one.
        """
        depends = isinstance(check, Function) or (
            isinstance(check, MustMention) and any(placeholders(term) for term in check.terms)
        )

        def find(part: _Part, refs: tuple[Ref, ...]) -> str | None:
            if isinstance(check, Function) and isinstance(check.function, str):
                raise _Unknown(f"The code of {check.function!r} isn't loaded.")
            self._require_same_type(check, part)
            first: str | None = None
            for ref in refs if depends else refs[:1]:
                if depends and ref.item not in self._items:
                    raise _Unknown(_NO_ITEMS)
                problem = self._run_check(check, part, refs, self._items[ref.item] if depends else _UNUSED)
                if problem is None:
                    return None
                first = first or problem
            return first

        return find

    def _run_check(self, check: Check, part: _Part, refs: Sequence[Ref], item: Item) -> str | None:
        try:
            problem = check.problem(part.value, item)
            if problem is None and isinstance(check, Sources):
                pages = [page for ref in refs for page in self._outcomes[ref].citations]
                problem = check.citation_problem(part.value, pages)
        except BriefError as error:
            raise _Unknown(str(error)) from None
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- a check may be the user's function
            raise _Unknown(f"The check raised {safe_message(error)}.") from None
        return problem

    def _check_writes(self, name: str, brief: Brief) -> Requirement:
        """Return the verdict on the files of a merged change: each change stays within the `writes` of its brief."""
        files = get_at(self._merge.value, ["files"])
        parts: list[tuple[_Part, tuple[Ref, ...]]] = []
        for at, file in enumerate(files if isinstance(files, list) else ()):
            path = pointer("files", at)
            refs = tuple(ref for ref in self._sources.get(path, ()) if self._names.get(ref.brief) == name)
            if refs:
                parts.append((_Part(path, get_at(file, ["path"]), refs), refs))
        depends = any(map(placeholders, brief.writes))
        globs_of: dict[str, list[Glob]] = {}

        def globs(key: str) -> list[Glob]:
            if depends and key not in self._items:
                raise _Unknown(_NO_ITEMS)
            if key not in globs_of:
                filled = brief.fill_placeholders(self._items[key]) if depends else brief
                globs_of[key] = [Glob.parse(glob) for glob in filled.writes]
            return globs_of[key]

        def find(part: _Part, refs: tuple[Ref, ...]) -> str | None:
            outside = [ref for ref in refs if not any(matches_path(each, str(part.value)) for each in globs(ref.item))]
            return f"{part.value} is outside of what {outside[0]} may write." if outside else None

        text = f"Changed files match {join_names(map(repr, brief.writes), _LISTED)}."
        return self._compare(name, "scope", text, parts, find)

    def _compare(
        self,
        name: str,
        kind: Any,  # noqa: ANN401 -- a literal of the model
        text: str,
        parts: Sequence[tuple[_Part, tuple[Ref, ...]]],
        find: _Problem,
    ) -> Requirement:
        """Return the verdict on a requirement that each of some parts has to satisfy."""
        places: list[RequirementPlace] = []
        unknown: dict[str, int] = {}
        for part, refs in parts:
            try:
                problem = find(part, refs)
            except _Unknown as why:
                unknown[str(why)] = unknown.get(str(why), 0) + 1
                continue
            if problem:
                message = redact(shorten(problem, _LONGEST))
                places.append(RequirementPlace(path=part.path, sources=refs[:MAX_PLACES], message=message))
        missing = sum(unknown.values())
        note = f"{next(iter(unknown))} ({missing} of {count_noun(len(parts), 'part')})" if unknown else ""
        if not parts:
            note = _WRITTEN if self._is_written else _TAKEN_APART
        return _requirement(name, kind, text, checked=len(parts) - missing, unknown=missing, places=places, note=note)


def _requirement(
    brief: str,
    kind: Any,  # noqa: ANN401 -- a literal of the model
    text: str,
    *,
    checked: int,
    unknown: int,
    places: Sequence[RequirementPlace],
    note: str,
) -> Requirement:
    """Return a requirement that was compared with some parts; it is met only if it was compared with all."""
    return Requirement(
        brief=brief,
        kind=kind,
        text=redact(shorten(text, _LONGEST)),
        verdict="violated" if places else "met" if checked and not unknown else "not_checkable",
        checked=checked,
        violations=len(places),
        places=tuple(places[:MAX_PLACES]),
        note=redact(shorten(note, _LONGEST)),
    )


def _in_words(brief: str, kind: Any, text: str) -> Requirement:  # noqa: ANN401 -- a literal of the model
    """Return a requirement in words, which only a judge can compare."""
    return Requirement(
        brief=brief, kind=kind, text=redact(unescape_template(text)), verdict="not_checkable", note=_NO_JUDGE
    )


def _judge_rules(
    found: Sequence[Requirement],
    merge: Merge,
    outcomes: Sequence[Outcome],
    integrator: BaseIntegrator,
    ask: Asker | None,
) -> Iterator[Requirement]:
    """Yield requirements, those in words with the opinion of the integrator's judge, if it has one."""
    rules = {
        at: _SCOPE_RULE.format(row.text) if row.kind == "scope" else row.text
        for at, row in enumerate(found)
        if row.note == _NO_JUDGE and not placeholders(row.text)
    }
    opinions: Sequence[RuleOpinion] | None = None
    if ask and rules:
        try:
            opinions = integrator.judge_rules(merge, outcomes, [*rules.values()], ask)
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- a judge that can't be asked takes no merge away
            opinions = [RuleOpinion("not_checkable", f"Not judged: {safe_message(error)}")] * len(rules)
    by_place = dict(zip(rules, opinions or (), strict=False))
    for at, row in enumerate(found):
        if (opinion := by_place.get(at)) is None:
            yield row
            continue
        places = (
            [RequirementPlace(path=opinion.path, sources=opinion.sources[:MAX_PLACES], message=opinion.sentence)]
            if opinion.verdict == "violated"
            else []
        )
        yield row.model_copy(
            update={
                "verdict": opinion.verdict,
                "checked": int(opinion.verdict != "not_checkable"),
                "violations": len(places),
                "places": tuple(places),
                "note": redact(opinion.note),
            }
        )


def _describe_output(brief: Brief) -> str:
    """Return the form that a brief asks for, in words."""
    if brief.output == "text":
        return "Each answer is text."
    if isinstance(brief.output, str) and REFERENCE.fullmatch(brief.output):
        return f"Each answer is a {brief.output!r}."
    if isinstance(brief.output, type):
        return f"Each answer is a {brief.output.__name__}."
    schema: Any = schema_of(brief.output)
    fields = f" with the fields {join_names(map(repr, names), _LISTED)}" if (names := schema.get("properties")) else ""
    return f"Each answer conforms to the output schema{fields}."


def _describe_check(check: Check) -> str:
    """Return a check in words: its kind and settings."""
    settings = check.model_dump(mode="json", exclude={"kind"}, exclude_defaults=True)
    return ", ".join((check.kind, *(f"{name} {value_text(each)}" for name, each in settings.items())))


def _sources_by_entry(merge: Merge) -> dict[str, tuple[Ref, ...]]:
    """Return the sources of each entry of a list in the value, by its JSON Pointer."""
    by_entry: dict[str, dict[Ref, None]] = {}
    for row in merge.fields:
        _, *tokens = row.path.split("/", 3)
        if len(tokens) > 1:
            by_entry.setdefault(f"/{tokens[0]}/{tokens[1]}", {}).update(dict.fromkeys(row.sources))
    return {
        entry: tuple(refs) if len(refs) == 1 else tuple(sorted(refs, key=lambda ref: ref.order))
        for entry, refs in by_entry.items()
    }


MAX_NAMED = 3
"""Violated requirements that the message of a run names."""


def requirement_shortfalls(requirements: Sequence[Requirement]) -> tuple[str, ...]:
    """Return a sentence on the requirements that a merged value violates, for the message of a run; or none.

    Example:
        >>> place = RequirementPlace(path="/answers/0/value", sources=(), message="It has 9 words; the most is 5.")
        >>> row = Requirement(brief="sum", kind="check", text="max_words", verdict="violated", places=[place])
        >>> requirement_shortfalls([row])
        ('The merged value violates 1 requirement: check of sum at /answers/0/value.',)
    """
    broken = [row for row in requirements if row.verdict == "violated"]
    if not broken:
        return ()
    names = [
        f"{row.kind} of {row.brief or 'the integrator'} at {row.places[0].path or '/'}"
        f"{f' and {row.violations - 1} more' if row.violations > 1 else ''}"
        for row in broken
    ]
    return (f"The merged value violates {count_noun(len(broken), 'requirement')}: {join_names(names, MAX_NAMED)}.",)
