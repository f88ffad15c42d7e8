"""Describe, in sentences for a reviewer, the rules by which records were merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.integrators.merge_records.fold import DEFAULT_WEIGHT
from prefect_dispatch.integrators.merge_records.identities import ITEM_KEY
from prefect_dispatch.integrators.merge_records.linkage import WINDOW
from prefect_dispatch.serialization.json_text import canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect_dispatch.integrators.merge_records.field_rules import Rule, Rulebook
    from prefect_dispatch.integrators.merge_records.fold import Trust
    from prefect_dispatch.integrators.merge_records.grouping import MergedEntries, RecordIndex
    from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords


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


def describe_rules(config: MergeRecords, book: Rulebook, index: RecordIndex, merged: MergedEntries) -> str:
    """Return in one paragraph how records were identified, and how their fields were merged.

    Args:
        config: The integrator.
        book: The rules, with the reliability of the sources.
        index: The records by identity.
        merged: The result of the merge.

    Example:
        >>> from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
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
    return " ".join([location, *_describe_identity(config, index, merged), *_describe_fields(config, book)])


def _describe_identity(config: MergeRecords, index: RecordIndex, merged: MergedEntries) -> Iterator[str]:
    """Yield how records were identified, and which reviewers' decisions could not be followed."""
    # 1. Equal identities.
    texts = [repr(field) for field in config.identity if field != ITEM_KEY]
    if texts:
        yield (
            f"Records are the same if {' and '.join(texts)} {'are' if len(texts) > 1 else 'is'} equal but for case, "
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
        beside = f", with {' and '.join(map(repr, matching.fields))} beside them" if matching.fields else ""
        yield (
            f"Identities spelt differently were compared word by word{beside}, without accents and punctuation: at "
            f"{matching.sure:g} or more of 1 they were taken for the same, unless a number, a symbol, a single letter "
            "or a Roman numeral differs, a word stands in one alone, is abbreviated or stands elsewhere, or two words "
            f"differ by more than one slip of the pen; from {matching.propose:g} on they were proposed. Compared were "
            f"the pairs that share a rare part of three letters, or two common ones: {linked.comparisons:,}."
        )
    if linked.skipped_pairs:
        yield (
            f"Where more than {WINDOW} share such a part, each was compared with the {WINDOW} before it in the "
            f"alphabet: {linked.skipped_pairs:,} times a pair was passed over for that."
        )
    # 3. Reviewers' decisions.
    if decided := sum(link.is_decided for link in linked.links):
        yield f"{decided} {'pair' if decided == 1 else 'pairs'} became one because somebody decided so."
    if broken := linked.contradictory_pairs:
        pairs = [" and ".join(canonical_json(dict(index.spelling(key))) for key in pair) for pair in broken]
        yield (
            f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} decided to be the same stayed apart, because other "
            f"decisions say so: {_join_limited(pairs)}"
        )
    if unknown := [canonical_json(dict(name)) for name in index.unknown_identities]:
        yield f"Decided on, but named by no record: {_join_limited(unknown)}"
    unapplied = index.unapplied_choices(merged.considered_choices)
    if choices := [f"{choice.field!r} of {canonical_json(dict(choice.record))}" for choice in unapplied]:
        yield f"Chosen for what is no field of that record, or is decided with others: {_join_limited(choices)}"


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
            "Numbers are smaller than texts, texts go by code point, and all else comes last, by its JSON.",
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
        "than any other."
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


def _join_limited(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return f"{', '.join(names[:_MOST_LISTED])}{more}."
