"""Records that are the same become one, field by field, by documented rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, PrivateAttr, StringConstraints, model_validator

from prefect_dispatch.decisions import Decisions, load_decisions
from prefect_dispatch.integrators.base import gaps, restated_gaps
from prefect_dispatch.integrators.dispositions import dispositions
from prefect_dispatch.integrators.folding import Part, Rulebook, fold, keep
from prefect_dispatch.integrators.promises import require_fields
from prefect_dispatch.integrators.rules import FieldRule, Rule
from prefect_dispatch.integrators.values import Order, exact, get, normal, order, pointer, silent
from prefect_dispatch.ledger import Merge, Ref
from prefect_dispatch.models import Outcome
from prefect_dispatch.references import REFERENCE
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from typing_extensions import Self

    from prefect_dispatch.integrators.folding import Decision
    from prefect_dispatch.models import Brief

Key = tuple[int, tuple[Order, ...]]
_SAME, _ALONE = 0, 1

FieldPath = Annotated[str, StringConstraints(pattern=r"^[^.]+(\.[^.]+)*$")]


def _rule(value: object) -> object:
    return cast("object", value) if isinstance(value, (Mapping, Rule)) else {"rule": value}


def _rules(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    named = cast("Mapping[object, object]", value)
    return [{**dict(cast("Mapping[str, object]", _rule(rule))), "field": field} for field, rule in named.items()]


class MergeRecords(Strict):
    """Merges records of equal identity into one.

    **What is a record.** An answer may be one record (an object), a list of records, or an
    object that holds the list at the path `records`; what else stands in that object is a
    record, too. Null and `{}` say nothing. What has no identity (a record that lacks a field of
    `identity`, or something that is no object) is kept, as it is, as an entry of its own.

    **Identity.** Records are the same if all `identity` fields are equal once texts are NFKC
    normalised and case folded, their white space collapsed and stripped; `1` equals `1.0`, and
    `1` differs from `"1"` and from `true`. A blank text, `[]` and `{}` are no identity.

    **Fields.** Each field (key of the record) is decided by its rule, or by `default`; fields of
    the identity by `priority` unless a rule says otherwise. Null never competes with a value. A
    rule for a dotted path `a.b` makes the objects at `a` merge key by key, the others of their
    keys by the rule for `a`; where some record has no object at `a`, `a` is decided as a whole.

    **Preference.** Higher brief priority, then higher item priority, then the record with the
    smaller JSON text, so that what ties is taken from one record throughout.

    **Value.** `{"records": […], "gaps": […]}`: the records in order of identity, then what has none in
    order of its JSON, keys sorted; and the outcomes without an answer, as `Collate` has them.

    **Ledger.** In each merged record an outcome is `merged` if it is the most preferred one to say
    some value that stands there; else `overridden` if a rule removed something it says, `by` the
    outcome whose value stands instead; else `duplicate_of` the outcome that says most of it. An
    outcome with several records gets the best of these, and a count of each as the reason.

    Example:
        >>> from prefect_dispatch.models import Outcome
        >>> said = [
        ...     Outcome(brief="terms", item="a", status="succeeded", value={"name": "MIT", "year": 1987}),
        ...     Outcome(brief="terms", item="b", status="succeeded", value={"name": "mit ", "year": 1988}),
        ... ]
        >>> merge = MergeRecords(identity=("name",), rules={"year": "max"}).merge([], said)
        >>> merge.value
        {'records': [{'name': 'MIT', 'year': 1988}], 'gaps': []}
        >>> [(row.path, row.rule, str(row.sources[0])) for row in merge.fields]
        [('/records/0/name', 'priority', 'terms/a'), ('/records/0/year', 'max', 'terms/b')]
    """

    model_config = ConfigDict(title="Merge records")

    kind: Literal["merge_records"] = "merge_records"
    """Tells the integrators apart."""
    identity: Annotated[tuple[FieldPath, ...], Field(min_length=1)]
    """The fields (dotted paths allowed) that make two records the same."""
    records: str = ""
    """Dotted path of the list of records inside an answer; empty if the answer is a record or a list."""
    rules: Annotated[tuple[FieldRule, ...], BeforeValidator(_rules)] = ()
    """How fields are decided. A mapping from field to rule is taken, too."""
    default: Annotated[Rule, BeforeValidator(_rule)] = Field(default=Rule(), title="All other fields")
    """How all other fields are decided."""
    aliases: str | None = None
    """Path of the decisions file, relative to the job file: records that are the same, or not, and chosen values."""
    _decisions: Decisions = PrivateAttr(default_factory=Decisions)

    entries: ClassVar[str] = "records"
    """Where, in the merged value, the records stand."""

    @model_validator(mode="after")
    def _rules_fit(self) -> Self:
        fields = [rule.field for rule in self.rules]
        if twice := sorted({field for field in fields if fields.count(field) > 1}):
            raise ValueError(f"field {twice[0]!r} has more than one rule; keep one")
        for rule in self.rules:
            if not rule.picks and self.book.identifies(tuple(rule.field.split("."))):
                raise ValueError(
                    f"field {rule.field!r} belongs to the identity, so rule {rule.name!r} can't change it; "
                    "take a rule that picks one of the values"
                )
        return self

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:  # noqa: ARG002 -- the signature of every integrator
        """Return the merged records, with a row for each field and each outcome.

        Raises:
            JobError: If a rule's function is missing, or returned something that isn't JSON.
        """
        ranked = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
        book = self.book
        records: list[JsonValue] = []
        decided: list[list[Decision]] = []
        for has_identity, parts in self._groups(ranked):
            merged, decisions = fold(parts, book) if has_identity else (parts[0].value, [keep(parts[0])])
            records.append(merged)
            decided.append(decisions)
        rows = [
            decision.row(pointer(self.entries, at, *decision.path))
            for at, made in enumerate(decided)
            for decision in made
        ]
        return Merge(
            value={self.entries: records, "gaps": gaps(ranked)},
            ledger=dispositions(ranked, decided),
            fields=tuple(rows),
        )

    def restated(self, merge: Merge) -> list[Outcome] | None:
        """Return the records of a merged value as one answer, and its gaps; None where a function decides."""
        if any(callable(rule.rule) for rule in (*self.rules, self.default)):
            return None
        value: Any = merge.value
        return [Outcome(brief="merged", item="*", status="succeeded", value=value[self.entries]), *restated_gaps(value)]

    def preflight(self, briefs: Sequence[Brief]) -> None:
        """Check that the briefs' schemas have the fields that this integrator names.

        Raises:
            JobError: If a brief asks for text, or a field is unknown; it names the nearest one.
        """
        named = [rule.field for rule in self.rules] + [rule.by for rule in (*self.rules, self.default) if rule.by]
        require_fields(briefs, records=self.records, identity=self.identity, named=named)

    def parts(self, value: JsonValue) -> list[JsonValue]:
        """Return the records of an answer, and whatever else it says."""
        path = self.records.split(".") if self.records else []
        if path and isinstance(found := get(value, path), list):
            return [part for part in (*found, _without(value, path)) if not silent(part)]
        return [part for part in (value if isinstance(value, list) else [value]) if not silent(part)]

    def key(self, part: JsonValue) -> Key:
        """Return what is equal for parts that belong together: the identity, or (after all of those) the content."""
        identity = [normal(get(part, path.split("."))) for path in self.identity]
        if any(silent(value) or value in ("", []) for value in identity):
            return (_ALONE, (order(part),))
        return (_SAME, tuple(map(order, identity)))

    @property
    def book(self) -> Rulebook:
        """Which rule is for which field."""
        return Rulebook(
            rules={tuple(rule.field.split(".")): rule for rule in self.rules},
            default=self.default,
            identity=[tuple(field.split(".")) for field in self.identity],
        )

    @property
    def references(self) -> tuple[str, ...]:
        """The `module:name` texts among the rules that stand for functions of the user's and aren't loaded yet."""
        names = [rule.rule for rule in (*self.rules, self.default)]
        return tuple(name for name in names if isinstance(name, str) and REFERENCE.fullmatch(name))

    def resolved(self, load: Callable[[str], Any]) -> MergeRecords:
        """Return this integrator with every `module:name` replaced by what `load` returns for it."""
        *rules, default = (
            rule.model_copy(update={"rule": load(rule.rule)}) if rule.name in self.references else rule
            for rule in (*self.rules, self.default)
        )
        return self.model_copy(update={"rules": tuple(rules), "default": default})

    @property
    def decisions(self) -> Decisions:
        """What people decided about earlier merges."""
        return self._decisions

    def decided(self, decisions: Decisions) -> Self:
        """Return this integrator following these decisions, and no others."""
        other = self.model_copy()
        other._decisions = decisions  # noqa: SLF001 -- of a copy of its own
        return other

    def placed(self, folder: Path) -> Self:
        """Return this integrator following the decisions in its file, if it names one.

        Raises:
            JobError: If the file can't be read, or holds something else.
        """
        return self if self.aliases is None else self.decided(load_decisions(folder / self.aliases))

    def _groups(self, outcomes: Sequence[Outcome]) -> list[tuple[bool, list[Part]]]:
        """Return the parts of all answers: those of one identity together, and each of the others alone."""
        together: dict[Key, list[Part]] = {}
        for place, outcome in enumerate(outcomes):
            for value in self.parts(outcome.value) if outcome.status == "succeeded" else ():
                rank = (-outcome.brief_priority, -outcome.item_priority, exact(value), place)
                together.setdefault(self.key(value), []).append(Part(value, Ref.of(outcome), rank))
        groups: list[tuple[bool, list[Part]]] = []
        for key in sorted(together):
            if key[0] == _SAME:
                groups.append((True, sorted(together[key], key=lambda part: part.rank)))
            else:
                groups += [(False, [part]) for part in sorted(together[key], key=lambda part: part.rank[2:])]
        return groups


def _without(value: JsonValue, path: Sequence[str]) -> JsonValue:
    """Return an object without what stands at a path of keys, and without objects that this leaves empty."""
    parts = cast("dict[str, JsonValue]", value)
    rest = {name: part for name, part in parts.items() if name != path[0]}
    inner = _without(parts[path[0]], path[1:]) if path[1:] else None
    return rest if silent(inner) else {**rest, path[0]: inner}
