"""Integrator that deduplicates records and merges them field by field, by documented rules."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from prefect_dispatch.integrators.audit.recompute_records import recompute_records
from prefect_dispatch.integrators.base import BaseIntegrator, gap_violations, gaps
from prefect_dispatch.integrators.crowdkit_adapter import require_crowd_kit
from prefect_dispatch.integrators.decisions_file import DecisionsFile, FileName
from prefect_dispatch.integrators.merge_records.field_rules import (
    DEFAULT_WEIGHT,
    Conflicts,
    FieldPath,
    OneRule,
    OptionalPath,
    Rule,
    Rulebook,
    Rules,
    Trust,
)
from prefect_dispatch.integrators.merge_records.fold import add_source_trust, trust_table
from prefect_dispatch.integrators.merge_records.grouping import RecordIndex, merge_groups, to_outcomes
from prefect_dispatch.integrators.merge_records.identities import ITEM_KEY, Identities, has_identity
from prefect_dispatch.integrators.merge_records.linkage import WINDOW
from prefect_dispatch.integrators.merge_records.schema_conformance import (
    find_record_violations,
    require_fields,
    unflagged_violations,
)
from prefect_dispatch.integrators.merge_records.similarity import Matching
from prefect_dispatch.integrators.run_merge import gc_paused
from prefect_dispatch.models.base import NON_EMPTY, Strict
from prefect_dispatch.models.decisions import Decisions, Identity
from prefect_dispatch.models.imports import REFERENCE
from prefect_dispatch.models.ledger import Merge, Ref
from prefect_dispatch.security.escaping import count_noun, join_names
from prefect_dispatch.serialization.json_text import canonical_json

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from typing_extensions import Self

    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.ledger import Violation
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.serialization.json_values import Key


class MergeRecords(BaseIntegrator, Strict):
    """Merges records of equal identity into one.

    **Records.** An answer is one record (an object), a list of records, or an object that holds the
    list at the path `records`; the rest of that object is then a record, too. Null and `{}` are no
    records. A part without an identity (a record that lacks a field of `identity`, or a value that is
    no object) is kept unchanged, as an entry of its own.

    **Identity.** Records are the same if all `identity` fields are equal after normalization
    (`similarity`), which ignores only spelling that can't distinguish two things: case, white space,
    compatibility forms, quotation marks and dashes; and, if they are the whole text, unambiguously grouped
    digits, and dates and quantities with a single reading. `1` equals `1.0`, and differs from `"1"` and from
    `true`; "C" is not "C++", nor "1.10" "1.1". A blank text, `[]` and `{}` are no identity. `{key}` in `identity`
    is the key of the item that an answer is about, not normalized; the merged record has it as its field
    `key`, in preference to a field of that name in the answer. If it is the only field of the identity, several
    records of one answer are kept unchanged.

    **Matching.** With `match`, different identities are compared, too (`similarity`); `match: {}` uses the default
    thresholds. Certain matches are merged, and the table `links` states the reason; likely ones are proposed and kept
    apart. Records that contradict each other in one of the compared fields (`match.fields`) are no certain match, not
    even with equal identities: these are kept apart and proposed. With `match.model`, all that is compared is learned
    from the records (`learned_matches`), and equal identities are evidence like all else. The file `aliases` lists
    identities that are the same, and identities that are different, which are never merged through a third one; it
    overrides any similarity. An identity of several fields is then taken from one record as a whole.

    **Fields.** Each field (key of the record) is decided by its rule, or by `default`; fields of
    the identity by `priority` unless they have a rule. Null never competes with a value. A
    rule for a dotted path `a.b` merges the objects at `a` key by key, their other
    keys by the rule for `a`; if some record has no object at `a`, `a` is decided as a whole.

    **Lists.** Under `union` and `keep_all` a list counts as its elements; with `identity`, elements that
    are objects are identified by it and merged like records, by the rules for `list.field`.

    **Conflicts.** If records disagree, the rule decides (`resolve`), or decides and flags the field
    (`flag`), or all values are kept as a list (`keep_all`); a value chosen by a reviewer (`aliases`) takes precedence.

    **Schema.** Fields that are valid one by one may not be valid together (`oneOf`, `maxProperties`, `if`): a record
    that was merged from several and violates its brief's schema is kept, and flagged with the violation.

    **Preference.** Higher brief priority, then higher item priority, then the record with the
    smaller JSON text, so that all ties of two records are resolved in favour of the same one.

    **Value.** `{"records": […], "gaps": […]}`: the records sorted by identity, then those without one
    by their JSON, keys sorted; and the outcomes without an answer, as in `Collate`.

    **Ledger.** In each merged record an outcome is `merged` if it is the most preferred one with
    some value that is kept; else `overridden` if a rule removed a value of it, `by` the
    outcome whose value is kept instead; else `duplicate_of` the outcome that has most of its values. An
    outcome with several records gets the best of these, and a count of each as the reason.

    Example:
        >>> from prefect_dispatch.models.outcome import Outcome
        >>> outcomes = [
        ...     Outcome(brief="terms", item="a", status="succeeded", value={"name": "MIT", "year": 1987}),
        ...     Outcome(brief="terms", item="b", status="succeeded", value={"name": "mit ", "year": 1988}),
        ... ]
        >>> merge = MergeRecords(identity=("name",), rules={"year": "max"}).merge([], outcomes)
        >>> merge.value
        {'records': [{'name': 'MIT', 'year': 1988}], 'gaps': []}
        >>> [(row.path, row.rule, str(row.sources[0])) for row in merge.fields]
        [('/records/0/name', 'priority', 'terms/a'), ('/records/0/year', 'max', 'terms/b')]
    """

    model_config = ConfigDict(title="Merge records")

    kind: Literal["merge_records"] = "merge_records"
    """Discriminates the kinds of integrators."""
    identity: Annotated[tuple[FieldPath, ...], NON_EMPTY]
    """The fields (dotted paths allowed) that identify a record; `{key}` is the item's key."""
    records: OptionalPath = ""
    """Dotted path of the list of records inside an answer; empty if the answer is a record or a list."""
    rules: Rules = ()
    """How fields are decided. A mapping from field to rule is accepted, too."""
    default: OneRule = Field(default=Rule(), title="All other fields")
    """How all other fields are decided."""
    conflicts: Conflicts = "resolve"
    """If records disagree: the rule decides; or all values are kept, as a list; or it decides and flags the field."""
    match: Matching | None = Field(default=None, title="Match identities that are spelt differently")
    """Thresholds for merging records whose identities are spelled differently. Empty: identities must be equal."""
    aliases: FileName | None = None
    """Path of the decisions file, relative to the job file: records that are the same, or not, and chosen values."""
    _decisions: Decisions = PrivateAttr(default_factory=Decisions)

    entries: ClassVar[str] = "records"
    """Name of the list of records in the merged value."""

    @model_validator(mode="after")
    def _rules_fit(self) -> Self:
        fields = [rule.field for rule in self.rules]
        if duplicates := sorted({field for field in fields if fields.count(field) > 1}):
            raise ValueError(f"field {duplicates[0]!r} has more than one rule; keep one")
        for rule in self.rules:
            if self.book.affects_identity(tuple(rule.field.split("."))) and not (
                rule.picks_value and rule.conflicts is None
            ):
                raise ValueError(
                    f"field {rule.field!r} belongs to the identity, so rule {rule.name!r} can't change it, nor can "
                    "'conflicts'; take a rule that picks one of the values"
                )
        return self

    @model_validator(mode="after")
    def _identity_fits(self) -> Self:
        ruled = [rule.field for rule in self.rules if rule.rule != "priority"]
        if error := self.identities.find_flaw(
            ruled, linking=bool(self.match or self.aliases), matching=bool(self.match)
        ):
            raise ValueError(error)
        return self

    @gc_paused()
    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Return the merged records, with a row for each field and each outcome.

        Raises:
            JobError: If a rule's function is missing, or returned a value that is not JSON.
        """
        # 1. Index the records by identity, and link identities by similarity and decisions.
        ranked = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
        index = self.scopes(ranked)
        groups = index.groups()
        # 2. Estimate the reliability of sources for the rule `trust`, then merge each group.
        book, trust = add_source_trust([group.parts for group in groups if has_identity(group.key)], self.book, ranked)
        merged = merge_groups(ranked, index, groups, book, index.choices_by_record(), at=self.entries)
        # 3. Describe the result, and flag merged records that violate their schema.
        merge = Merge(
            value={self.entries: merged.entries, "gaps": gaps(ranked)},
            ledger=merged.ledger,
            fields=merged.fields,
            flags=merged.flags,
            proposals=index.proposals(),
            tables=(*index.link_tables(), *trust),
            rules=describe_rules(self, book, index, merged.considered_choices),
        )
        violations = [
            each.flag
            for each in find_record_violations(merge, ranked, briefs, index, book, at=self.entries)
            if each.is_merged
        ]
        return merge.model_copy(update={"flags": (*merge.flags, *violations)}) if violations else merge

    def as_outcomes(self, merge: Merge) -> list[Outcome] | None:
        """Return a merged value as outcomes that can be merged again; None if a second merge may differ.

        It may if a function decides; if fields beside the identity are compared, since a merged
        record may have more of them than any source; and if parts of an object are collected.
        """
        if (self.match and (self.match.fields or self.match.model)) or any(
            callable(rule.rule) for rule in (*self.rules, self.default)
        ):
            return None
        if any(
            "." in r.field and (not r.picks_value or (r.conflicts or self.conflicts) == "keep_all") for r in self.rules
        ):
            return None  # a part is not collected if some record has no object there, but would be the next time
        return to_outcomes(merge, self.identities, entries=self.entries)

    def recompute(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Merge | None:  # noqa: ARG002 -- the signature of every integrator
        """Return the merge that the outcomes result in, without the code that merges them.

        Which identities are similar is computed by the same code, as are the words in which the rules are described.
        """
        ranked = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
        index, book = self.scopes(ranked), self.book
        expected = recompute_records(ranked, index, book, at=self.entries)
        book = replace(book, trust={of: Trust(*each) for of, each in expected.trust.items()})
        tables = (*index.link_tables(), *([trust_table(expected.trust_rows)] if expected.trust else []))
        whole = Merge(
            value={self.entries: expected.entries, "gaps": gaps(ranked)},
            ledger=expected.ledger,
            fields=expected.fields,
            proposals=index.proposals(),
            tables=tables,
            rules=describe_rules(self, book, index, expected.considered),
        )
        misfits = find_record_violations(whole, ranked, briefs, index, book, at=self.entries)
        flags = (*expected.flags, *(each.flag for each in misfits if each.is_merged))
        return whole.model_copy(update={"flags": flags})

    def verify(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Iterator[Violation]:
        """Yield schema violations of records that are not flagged, and gaps that are not reported."""
        yield from gap_violations(merge, outcomes)
        ranked = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
        yield from unflagged_violations(
            merge, find_record_violations(merge, outcomes, briefs, self.scopes(ranked), self.book, at=self.entries)
        )

    def preflight(self, briefs: Sequence[Brief]) -> None:
        """Check that the briefs' schemas have the fields that this integrator uses.

        Raises:
            JobError: If a brief asks for text, or a field is unknown; the message names the nearest one.
        """
        paths = [rule.field for rule in self.rules] + [rule.by for rule in (*self.rules, self.default) if rule.by]
        paths += [f"{rule.field}.{name}" for rule in self.rules for name in rule.identity]
        compared = self.match.fields if self.match else ()
        require_fields(
            briefs, records=self.records, identity=self.identity, rule_fields=paths, compared_fields=compared
        )
        if any(rule.rule == "trust" for rule in (*self.rules, self.default)):
            require_crowd_kit("The rule 'trust'")

    def scopes(self, outcomes: Sequence[Outcome]) -> RecordIndex:
        """Return the index of records, which assigns each part of an answer to an entry of the merged value."""
        return RecordIndex(outcomes, self.identities, self.match, self.decisions)

    @property
    def identities(self) -> Identities:
        """Finds the records of an answer and their identities."""
        return Identities(self.identity, self.records, self.match.fields if self.match else ())

    @property
    def book(self) -> Rulebook:
        """Selects the rule of each field."""
        return Rulebook(
            rules={tuple(rule.field.split(".")): rule for rule in self.rules},
            default=self.default,
            identity=self.identities.paths,
            conflicts=self.conflicts,
        )

    @property
    def references(self) -> tuple[str, ...]:
        """The `module:name` references among the rules that are not resolved to functions yet."""
        names = [rule.rule for rule in (*self.rules, self.default)]
        return tuple(name for name in names if isinstance(name, str) and REFERENCE.fullmatch(name))

    def resolve_references(self, load: Callable[[str], Any]) -> MergeRecords:
        """Return a copy with every `module:name` replaced by what `load` returns for it."""
        *rules, default = (
            rule.model_copy(update={"rule": load(rule.rule)}) if rule.name in self.references else rule
            for rule in (*self.rules, self.default)
        )
        return self.model_copy(update={"rules": tuple(rules), "default": default})

    def canonical_identity(self, identity: Identity) -> Hashable:
        """Return the canonical name of an identity, equal for all its spellings."""
        return self.identities.canonical_name(identity)

    @property
    def decisions(self) -> Decisions:
        """Decisions of reviewers about earlier merges."""
        return self._decisions

    def with_decisions(self, decisions: Decisions) -> Self:
        """Return a copy that follows these decisions, and no others."""
        other = self.model_copy()
        other._decisions = decisions  # noqa: SLF001 -- the copy is of this class
        return other

    def resolve_paths(self, folder: Path) -> Self:
        """Return a copy that follows the decisions in its file, if it has one.

        Raises:
            JobError: If the file is not usable.
        """
        return (
            self.with_decisions(DecisionsFile(folder / self.aliases, self.canonical_identity).load())
            if self.aliases
            else self
        )


_RULES = {
    "priority": "what the preferred record says",
    "majority": "what most outcomes say",
    "trust": "what the sources of the greatest weight together say",
    "longest": "the longest text, of other values the longest JSON",
    "max": "the largest value",
    "min": "the smallest value",
    "union": "all distinct values, sorted",
    "keep_all": "all distinct values, the preferred first",
}
_CONFLICTS = {
    "resolve": "the rule decides, and what it removed stands in the field's row",
    "keep_all": "all distinct values stand, as a list, the preferred first, and no rule decides",
    "flag": "the rule decides, and the field is flagged with what each record says",
}
_MOST_LISTED = 5  # names; the rest are counted


def describe_rules(
    config: MergeRecords, book: Rulebook, index: RecordIndex, considered: AbstractSet[tuple[Key, tuple[str, ...]]]
) -> str:
    """Return in one paragraph how records were identified, and how their fields were merged.

    Args:
        config: The integrator.
        book: The rules, with the reliability of the sources.
        index: The records by identity.
        considered: Records and fields for which a reviewer's choice was considered.

    Example:
        >>> words = MergeRecords(identity=("name",), rules={"year": "max"}).merge([], []).rules
        >>> words.partition(". ")[0]
        'An answer is one record or a list of records'
        >>> "'year' becomes the largest value" in words
        True
    """
    location = "An answer is one record or a list of records."
    if config.records:
        location = (
            f"The records of an answer are the list at {config.records!r}; what stands beside it is a record, too."
        )
    return " ".join([location, *_describe_identity(config, index, considered), *_describe_fields(config, book)])


def _describe_identity(
    config: MergeRecords, index: RecordIndex, considered: AbstractSet[tuple[Key, tuple[str, ...]]]
) -> Iterator[str]:
    """Yield how records were identified, and which reviewers' decisions could not be followed."""
    # 1. Equal identities.
    texts = [repr(field) for field in config.identity if field != ITEM_KEY]
    subject = "Identities are equal" if config.match and config.match.model else "Records are the same"
    if texts:
        yield (
            f"{subject} if {' and '.join(texts)} {'are' if len(texts) > 1 else 'is'} equal but for case, "
            "white space, Unicode's compatible forms, quotation marks and dashes, the grouping of digits beyond doubt, "
            "and the form of dates and quantities that can be read in one way only."
        )
    if index.identities.by_item:
        subject = "They" if texts else "Records"
        yield f"{subject} are the same only if they are about one item, whose key stands in the field 'key'."
        if not texts:
            yield "Several records in one answer can't be distinguished, so each was kept as it is."
    yield "What lacks an identity was kept as it is."
    # 2. Identities that were compared.
    linked, matching = index.linkage, config.match
    if matching:
        yield from (_describe_model if matching.model else _describe_comparison)(index, matching)
    if linked.skipped_pairs:
        yield (
            f"Where more than {WINDOW} share such a part, each was compared with the {WINDOW} before it in the "
            f"alphabet: {linked.skipped_pairs:,} times a pair was passed over for that."
        )
    # 3. Reviewers' decisions.
    yield from _describe_decisions(index, considered)


def _describe_decisions(index: RecordIndex, considered: AbstractSet[tuple[Key, tuple[str, ...]]]) -> Iterator[str]:
    """Yield which reviewers' decisions were followed, and which could not be."""
    linked = index.linkage
    if decided := sum(link.is_decided for link in linked.links):
        yield f"{count_noun(decided, 'pair')} became one because somebody decided so."
    if broken := linked.contradictory_pairs:
        pairs = [" and ".join(canonical_json(dict(index.spelling(key))) for key in pair) for pair in broken]
        yield (
            f"{count_noun(len(pairs), 'pair')} decided to be the same stayed apart, because other "
            f"decisions say so: {join_names(pairs, _MOST_LISTED)}."
        )
    if unknown := [canonical_json(dict(name)) for name in index.unknown_identities]:
        yield f"Decided on, but named by no record: {join_names(unknown, _MOST_LISTED)}."
    if ambiguous := [canonical_json(dict(name)) for name in index.ambiguous_identities]:
        yield (
            "Decided to be the same as others, but several records of that name differ in what is compared; the "
            f"decision has to name a compared field, too: {join_names(ambiguous, _MOST_LISTED)}."
        )
    unapplied = index.unapplied_choices(considered)
    if choices := [f"{choice.field!r} of {canonical_json(dict(choice.record))}" for choice in unapplied]:
        names = join_names(choices, _MOST_LISTED)
        yield f"Chosen for what is no field of that record, or is decided with others: {names}."


def _describe_comparison(index: RecordIndex, matching: Matching) -> Iterator[str]:
    """Yield how identities were compared."""
    fields = " and ".join(map(repr, matching.fields))
    if fields:
        yield (
            f"Records that contradict each other in {fields} are never one by that, even if their identities are "
            "equal: they were proposed, and so was what could belong to several of them. Spellings of one value, "
            "one that only says more, lists, objects and long texts don't contradict each other. Where two agree, "
            "the doubt that their identities leave counts only as far as records agree there by chance."
        )
    beside = f", with {fields} beside them" if fields else ""
    yield (
        f"Identities spelt differently were compared word by word{beside}, without accents and punctuation: at "
        f"{matching.sure:g} or more of 1 they were taken for the same, unless a number, a symbol, a single letter "
        "or a Roman numeral differs, a word stands in one alone, is abbreviated or stands elsewhere, or two words "
        f"differ by more than one slip of the pen; from {matching.propose:g} on they were proposed. Compared were "
        f"the pairs that share a rare part of three letters, or two common ones: {index.linkage.comparisons:,}."
    )


def _describe_model(index: RecordIndex, matching: Matching) -> Iterator[str]:
    """Yield how a model was learned and applied."""
    beside = "".join(f", {field!r}" for field in index.identities.compared)
    yield (
        "An equal identity was evidence, like all else, and a part of one sufficed. Compared were the identity"
        f"{beside}, all words together and the numbers and codes among them; a word counts as it is rare. "
        "What each degree of agreement says was learned from all compared pairs, without labels (the model of "
        f"Fellegi and Sunter, by expectation maximization): at a probability of {matching.sure:g} or more records were "
        "taken for the same, if most of those that they thereby become one with fit, too; from "
        f"{matching.propose:g} on a pair was proposed, if none is more similar to one of the two. Compared were the "
        "nearest of the pairs that share a rare part of three letters, or two common ones: "
        f"{index.linkage.comparisons:,}."
    )
    if apart := index.count_separated():
        yield f"Of {apart:,} of the identities records stayed apart, although they are equal: too little else agrees."


def _describe_fields(config: MergeRecords, book: Rulebook) -> Iterator[str]:
    """Yield how the fields of records were merged."""
    rules = [*config.rules, config.default]
    names = {rule.name for rule in rules}
    fields = "".join(f"{rule.field!r} becomes {_describe_rule(rule, rule.identity)}; " for rule in config.rules)
    yield (
        f"Of records that are the same, {fields}{'every other field' if fields else 'each field'} becomes "
        f"{_describe_rule(config.default)}; but a field of the identity without a rule of its own becomes what the "
        "preferred record says. Preferred is the record of the brief with the higher priority, then of the item with "
        "the higher priority, then the one with the smaller JSON text; whatever ties falls by that. Null never stands "
        "against a value. A merged record that is not of the form asked for, though each answer is, stands as it is, "
        f"and is flagged. Where records disagree, {_CONFLICTS[config.conflicts]}; about the identity its rule decides."
    )
    notes = (
        (
            names & {"max", "min"},
            (
                "Texts of numbers count as numbers, and where all are times, they go by time. Numbers are smaller than "
                "other texts, texts go by code point, and all else comes last, by its JSON."
            ),
        ),
        ("newest" in names, "A time without an offset is UTC; what is no time comes before all times."),
        (
            any("." in rule.field for rule in config.rules),
            "An object is merged key by key for a rule about a part of it, unless some record has no object there.",
        ),
        (
            any(rule.collects_values for rule in rules),
            "Where values are gathered, a list counts as its elements, equal ones stand once, an empty list yields.",
        ),
        (
            any(rule.identity for rule in config.rules),
            (
                "The objects of such a list are identified, as records are, by these fields, and merged field by "
                "field, by the rules for their fields or the one for all others; sorted, they come in the order of "
                "their identity, and what has none comes last, once each."
            ),
        ),
    )
    yield from (note for applies, note in notes if applies)
    for trust in sorted(book.trust.values(), key=lambda each: each.source_kind):
        yield from _describe_trust(trust)
    if own := sorted(repr(name) for name in names if ":" in name):
        yield (
            f"{' and '.join(own)} may compute what no record says; what it was given then stands among the values that "
            "were removed."
        )
    if config.aliases:
        yield f"What people decided is in {config.aliases!r}."
    if choices := len(config.decisions.fields):
        yield (
            f"{choices} {'value was' if choices == 1 else 'values were'} chosen by somebody; such a one stands, before "
            "any rule, where some record says it."
        )


def _describe_trust(trust: Trust) -> Iterator[str]:
    """Yield how reliable the sources are, of one kind of source."""
    sources = {*trust.names.values()}
    yield (
        f"A source is {'an' if trust.source_kind == 'item' else 'a'} {trust.source_kind}: there are {len(sources)}. "
        f"Its weight is the share of its claims that most sources agree with (Wawa), or {DEFAULT_WEIGHT} where nothing "
        "is known; that counts fields about which two sources or more say something and one value has more of them "
        "than any other. This is a weighted majority: unlike the method 'auto' of 'consensus', it doesn't learn which "
        "value a source takes for which. Ties go to the higher priority, then by a hash of the sources."
    )
    if len({trust.weights.get(name, DEFAULT_WEIGHT) for name in sources}) == 1:
        yield "All sources weigh the same, so the most of them decide, and where they tie, the preferred record."


def _describe_rule(rule: Rule, identity: tuple[str, ...] = ()) -> str:
    """Return the value that a rule selects, with the rule's options; `identity` is that of the elements of a list."""
    return "".join(
        [
            f"what the record with the latest {rule.by!r} says"
            if rule.by
            else _RULES.get(rule.name, f"what the function {rule.name!r} makes of it"),
            f", where objects with equal {' and '.join(map(repr, identity))} are one" if identity else "",
            f", the source being the {rule.of}" if rule.of else "",
            f" (where records disagree about it, {_CONFLICTS[rule.conflicts]})" if rule.conflicts else "",
        ]
    )
