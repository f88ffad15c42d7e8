"""Records that are the same become one, field by field, by documented rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from prefect_dispatch.decisions import Decisions, Identity
from prefect_dispatch.decisions_file import DecisionsFile, FileName
from prefect_dispatch.integrators.auditing.forms import unflagged, untold
from prefect_dispatch.integrators.auditing.uncollected import uncollected
from prefect_dispatch.integrators.crowd import require_crowd_kit
from prefect_dispatch.integrators.gaps import gaps
from prefect_dispatch.integrators.promises import require_fields
from prefect_dispatch.integrators.records.describing import describe
from prefect_dispatch.integrators.records.fitting import misfits
from prefect_dispatch.integrators.records.gathering import Gathered
from prefect_dispatch.integrators.records.identities import Identities, has_identity
from prefect_dispatch.integrators.records.matching import Matching
from prefect_dispatch.integrators.records.restating import restate
from prefect_dispatch.integrators.records.rulebook import Rulebook
from prefect_dispatch.integrators.records.rules import Conflicts, FieldPath, OneRule, OptionalPath, Rule, Rules
from prefect_dispatch.integrators.records.uniting import unite
from prefect_dispatch.integrators.records.weighing import weighed
from prefect_dispatch.integrators.records.wording import identity_words, link_table
from prefect_dispatch.ledger import Merge, Ref
from prefect_dispatch.references import REFERENCE
from prefect_dispatch.strict import SOME, Strict

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence
    from pathlib import Path

    from typing_extensions import Self

    from prefect_dispatch.ledger import Violation
    from prefect_dispatch.models import Brief, Outcome


class MergeRecords(Strict):
    """Merges records of equal identity into one.

    **What is a record.** An answer may be one record (an object), a list of records, or an
    object that holds the list at the path `records`; what else stands in that object is a
    record, too. Null and `{}` say nothing. What has no identity (a record that lacks a field of
    `identity`, or something that is no object) is kept, as it is, as an entry of its own.

    **Identity.** Records are the same if all `identity` fields are equal but for spelling that
    never tells two things apart (`normalising`): case, white space, compatible forms, quotation
    marks and dashes; and, of a whole text, digits grouped beyond doubt, dates and quantities that
    can be read in one way only. `1` equals `1.0`, and differs from `"1"` and from `true`; "C" is not
    "C++", nor "1.10" "1.1". A blank text, `[]` and `{}` are no identity. `{key}` in `identity` is the
    key of the item that an answer is about, as it is; the merged record has it as its field `key`,
    ahead of whatever the answer says there. Where that is all that tells records apart, several of
    one answer are kept as they are.

    **Matching.** With `match`, identities spelt differently are compared, too (`likeness`); `match: {}` takes its
    thresholds as they are. What is surely the same becomes one, and the table `links` says why; what is likely is
    proposed and left apart. The file `aliases` says what is the same whatever its likeness, and what is not, be it by
    way of a third. An identity of several fields is then taken from one record as a whole.

    **Fields.** Each field (key of the record) is decided by its rule, or by `default`; fields of
    the identity by `priority` unless a rule says otherwise. Null never competes with a value. A
    rule for a dotted path `a.b` makes the objects at `a` merge key by key, the others of their
    keys by the rule for `a`; where some record has no object at `a`, `a` is decided as a whole.

    **Lists.** Under `union` and `keep_all` a list counts as its elements; with `identity`, those that
    are objects are told apart by it and merged like records, by the rules for `list.field`.

    **Conflicts.** Where records disagree, the rule decides (`resolve`), or decides and flags the field
    (`flag`), or all values stand as a list (`keep_all`); what somebody chose (`aliases`) comes first.

    **Form.** Fields that fit one by one may not fit together (`oneOf`, `maxProperties`, `if`): a record that was
    merged of several and that its brief's schema refuses stands as it is, and is flagged with what the schema says.

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
    identity: Annotated[tuple[FieldPath, ...], SOME]
    """The fields (dotted paths allowed) that make two records the same; `{key}` stands for the item's key."""
    records: OptionalPath = ""
    """Dotted path of the list of records inside an answer; empty if the answer is a record or a list."""
    rules: Rules = ()
    """How fields are decided. A mapping from field to rule is taken, too."""
    default: OneRule = Field(default=Rule(), title="All other fields")
    """How all other fields are decided."""
    conflicts: Conflicts = "resolve"
    """Where records disagree: the rule decides; or all values are kept, as a list; or it decides and is flagged."""
    match: Matching | None = Field(default=None, title="Match identities that are spelt differently")
    """Finds records that are the same although spelt differently. Empty: only equal identities are the same."""
    aliases: FileName | None = None
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
            if self.book.identifies(tuple(rule.field.split("."))) and not (rule.picks and rule.conflicts is None):
                raise ValueError(
                    f"field {rule.field!r} belongs to the identity, so rule {rule.name!r} can't change it, nor can "
                    "'conflicts'; take a rule that picks one of the values"
                )
        return self

    @model_validator(mode="after")
    def _identity_fits(self) -> Self:
        ruled = [rule.field for rule in self.rules if rule.rule != "priority"]
        if wrong := self.identities.flaw(ruled, linking=bool(self.match or self.aliases), matching=bool(self.match)):
            raise ValueError(wrong)
        return self

    @uncollected()
    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Return the merged records, with a row for each field and each outcome.

        Raises:
            JobError: If a rule's function is missing, or returned something that isn't JSON.
        """
        ranked = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
        gathered = self.scopes(ranked)
        groups = gathered.groups()
        book, trust = weighed([group.parts for group in groups if has_identity(group.key)], self.book, ranked)
        united = unite(ranked, gathered, groups, book, gathered.chosen(), at=self.entries)
        words = identity_words(self.identity, self.match, gathered, united.met)
        merge = Merge(
            value={self.entries: united.entries, "gaps": gaps(ranked)},
            ledger=united.ledger,
            fields=united.fields,
            flags=united.flags,
            proposals=gathered.proposals(),
            tables=(*link_table(gathered), *trust),
            rules=describe(book, words, self.records, self.aliases, len(self.decisions.fields)),
        )
        unfit = [each.flag for each in misfits(merge, ranked, briefs, gathered, book, at=self.entries) if each.merged]
        return merge.model_copy(update={"flags": (*merge.flags, *unfit)}) if unfit else merge

    def restated(self, merge: Merge) -> list[Outcome] | None:
        """Return what a merged value says as answers; None where nothing is promised.

        Nothing is where a function decides; where other fields tell what is the same, since those of a merged
        record may say more than any record did; and where parts of an object are gathered.
        """
        if (self.match and self.match.fields) or any(callable(rule.rule) for rule in (*self.rules, self.default)):
            return None
        if any("." in r.field and (not r.picks or (r.conflicts or self.conflicts) == "keep_all") for r in self.rules):
            return None  # where some record has no object there, a part isn't gathered, and would be the next time
        return restate(merge, self.identities, entries=self.entries)

    def broken(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Iterator[Violation]:
        """Yield what a schema refuses in the records, and no flag tells; and gaps not told."""
        yield from untold(merge, outcomes)
        ranked = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
        yield from unflagged(merge, misfits(merge, outcomes, briefs, self.scopes(ranked), self.book, at=self.entries))

    def preflight(self, briefs: Sequence[Brief]) -> None:
        """Check that the briefs' schemas have the fields that this integrator names.

        Raises:
            JobError: If a brief asks for text, or a field is unknown; it names the nearest one.
        """
        named = [rule.field for rule in self.rules] + [rule.by for rule in (*self.rules, self.default) if rule.by]
        named += [f"{rule.field}.{name}" for rule in self.rules for name in rule.identity]
        compared = self.match.fields if self.match else ()
        require_fields(briefs, records=self.records, identity=self.identity, named=named, compared=compared)
        if any(rule.rule == "trust" for rule in (*self.rules, self.default)):
            require_crowd_kit("The rule 'trust'")

    def scopes(self, outcomes: Sequence[Outcome]) -> Gathered:
        """Return what tells which part of an answer belongs to which entry of the merged value."""
        return Gathered(outcomes, self.identities, self.match, self.decisions)

    @property
    def identities(self) -> Identities:
        """What of an answer is a record, and which one."""
        return Identities(self.identity, self.records)

    @property
    def book(self) -> Rulebook:
        """Which rule is for which field."""
        return Rulebook(
            rules={tuple(rule.field.split(".")): rule for rule in self.rules},
            default=self.default,
            identity=self.identities.paths,
            conflicts=self.conflicts,
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

    def named(self, identity: Identity) -> Hashable:
        """Return what an identity is called: the same however it is spelt."""
        return self.identities.called(identity)

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
        """Return this integrator following the decisions in its file, if it names one; else a JobError says why not."""
        return self.decided(DecisionsFile(folder / self.aliases, self.named).load()) if self.aliases else self
