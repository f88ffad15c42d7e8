"""Describe, in sentences for a reviewer, the rules by which records were merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.integrators.merge_records.field_rules import FieldRule
from prefect_dispatch.integrators.merge_records.grouping import LINKS
from prefect_dispatch.integrators.merge_records.identities import ITEM_KEY
from prefect_dispatch.integrators.merge_records.linkage import WINDOW
from prefect_dispatch.integrators.merge_records.resolution import DEFAULT_WEIGHT
from prefect_dispatch.models.ledger import Table
from prefect_dispatch.serialization.json_text import canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from prefect_dispatch.integrators.merge_records.field_rules import Path, Rule, Rulebook
    from prefect_dispatch.integrators.merge_records.grouping import RecordIndex
    from prefect_dispatch.integrators.merge_records.similarity import Matching
    from prefect_dispatch.serialization.json_values import Key


_WORDS = {
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
_SIZES = "Numbers are smaller than texts, texts go by code point, and all else comes last, by its JSON."


def describe_rules(
    book: Rulebook, identity: str, records: str = "", aliases: str | None = None, choice_count: int = 0
) -> str:
    """Return the rules in one paragraph.

    Args:
        book: The rules, with the reliability of the sources.
        identity: How records were identified, in words.
        records: The dotted path of the list of records in an answer.
        aliases: The path of the decisions file.
        choice_count: The number of values chosen by reviewers.

    Example:
        >>> from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
        >>> book = MergeRecords(identity=("name",), rules={"year": "max"}).book
        >>> words = describe_rules(book, "Records are the same if 'name' is equal.")
        >>> words.partition(". ")[0]
        'An answer is one record or a list of records'
        >>> "'year' becomes the largest value" in words
        True
    """
    return " ".join(
        [
            _describe_location(records),
            identity,
            *_describe_fields(book),
            *_describe_options(book),
            *_describe_choices(aliases, choice_count),
        ]
    )


def _describe_location(records: str) -> str:
    if records:
        return f"The records of an answer are the list at {records!r}; what stands beside it is a record, too."
    return "An answer is one record or a list of records."


def _describe_fields(book: Rulebook) -> Iterable[str]:
    words = [f"{'.'.join(path)!r} becomes {_describe_rule(rule)}" for path, rule in book.rules.items()]
    yield (
        f"Of records that are the same, {'; '.join([*words, ''])}"
        f"{'every other field' if words else 'each field'} becomes {_describe_rule(book.default)}; "
        "but a field of the identity without a rule of its own becomes what the preferred record says."
    )
    yield (
        "Preferred is the record of the brief with the higher priority, then of the item with the higher priority, "
        "then the one with the smaller JSON text; whatever ties falls by that."
    )
    yield "Null never stands against a value."
    yield "A merged record that is not of the form asked for, though each answer is, stands as it is, and is flagged."


def _describe_rule(rule: Rule) -> str:
    if rule.by:
        word = f"what the record with the latest {rule.by!r} says"
    else:
        word = _WORDS.get(rule.name, f"what the function {rule.name!r} makes of it")
    if identity := _element_identity(rule):
        word += f", where objects with equal {' and '.join(map(repr, identity))} are one"
    if rule.of:
        word += f", the source being the {rule.of}"
    if rule.conflicts:
        word += f" (where records disagree about it, {_CONFLICTS[rule.conflicts]})"
    return word


def _describe_options(book: Rulebook) -> Iterable[str]:
    rules = [*book.rules.values(), book.default]
    names = {rule.name for rule in rules}
    yield f"Where records disagree, {_CONFLICTS[book.conflicts]}; about the identity its rule decides."
    if names & {"max", "min"}:
        yield _SIZES
    if any(rule.by for rule in rules):
        yield "A time without an offset is UTC; what is no time comes before all times."
    if any(len(path) > 1 for path in book.rules):
        yield "An object is merged key by key for a rule about a part of it, unless some record has no object there."
    if any(rule.collects_values for rule in rules):
        yield "Where values are gathered, a list counts as its elements, equal ones stand once, an empty list yields."
    if any(map(_element_identity, rules)):
        yield (
            "The objects of such a list are identified, as records are, by these fields, and merged field by field, by "
            "the rules for their fields or the one for all others; sorted, they come in the order of their identity, "
            "and what has none comes last, once each."
        )
    if "trust" in names:
        yield from _describe_trust(book)
    if own := sorted(name for name in names if ":" in name):
        yield (
            f"{' and '.join(map(repr, own))} may compute what no record says; what it was given then stands among the "
            "values that were removed."
        )


def _element_identity(rule: Rule) -> tuple[str, ...]:
    return rule.identity if isinstance(rule, FieldRule) else ()


def _describe_trust(book: Rulebook) -> Iterable[str]:
    for trust in sorted(book.trust.values(), key=lambda each: each.source_kind):
        count = len({*trust.names.values()})
        yield (
            f"A source is {_add_article(trust.source_kind)}: there are {count}. Its weight is the share of its "
            f"claims that most sources agree with (Wawa), or {DEFAULT_WEIGHT} where nothing is known; that counts "
            "fields about which two sources or more say something and one value has more of them than any other."
        )
        if len({trust.weights.get(name, DEFAULT_WEIGHT) for name in trust.names.values()}) == 1:
            yield "All sources weigh the same, so the most of them decide, and where they tie, the preferred record."


def _add_article(kind: str) -> str:
    return f"an {kind}" if kind == "item" else f"a {kind}"


def _describe_choices(aliases: str | None, choice_count: int) -> Iterable[str]:
    if aliases:
        yield f"What people decided is in {aliases!r}."
    if choice_count:
        yield (
            f"{choice_count} {'value was' if choice_count == 1 else 'values were'} chosen by somebody; such a one "
            "stands, before any rule, where some record says it."
        )


_MOST_LISTED = 5  # names; the rest are counted
_SAME = (
    "Records are the same if {named} equal but for case, white space, Unicode's compatible forms, quotation marks "
    "and dashes, the grouping of digits beyond doubt, and the form of dates and quantities that can be read in one way "
    "only."
)


_ALIKE = (
    "Identities spelt differently were compared word by word{beside}, without accents and punctuation: at {sure:g} or "
    "more of 1 they were taken for the same, unless a number, a symbol, a single letter or a Roman numeral differs, a "
    "word stands in one alone, is abbreviated or stands elsewhere, or two words differ by more than one slip of the "
    "pen; from {propose:g} on they were proposed. Compared were the pairs that share a rare part of three letters, or "
    "two common ones: {count:,}."
)


_PASSED = (
    "Where more than {window} share such a part, each was compared with the {window} before it in the alphabet: "
    "{count:,} times a pair was passed over for that."
)


def describe_identity(
    fields: tuple[str, ...], matching: Matching | None, index: RecordIndex, considered: AbstractSet[tuple[Key, Path]]
) -> str:
    """Return how records were identified, and which reviewers' decisions could not be followed, in words."""
    texts = [repr(field) for field in fields if field != ITEM_KEY]
    sentences = [_SAME.format(named=" and ".join(texts) + (" are" if len(texts) > 1 else " is"))] if texts else []
    if len(texts) < len(fields):
        sentences += ["They" if texts else "Records"]
        sentences[-1] += " are the same only if they are about one item, whose key stands in the field 'key'."
    if fields == (ITEM_KEY,):
        sentences += ["Several records in one answer can't be distinguished, so each was kept as it is."]
    sentences += ["What lacks an identity was kept as it is."]
    linked = index.linkage
    if matching:
        beside = f", with {' and '.join(map(repr, matching.fields))} beside them" if matching.fields else ""
        sentences += [
            _ALIKE.format(beside=beside, sure=matching.sure, propose=matching.propose, count=linked.comparisons)
        ]
        sentences += [_PASSED.format(window=WINDOW, count=linked.skipped_pairs)] if linked.skipped_pairs else []
    decided = [link for link in linked.links if link.is_decided]
    if decided:
        sentences += [f"{len(decided)} {_pluralize_pairs(len(decided))} became one because somebody decided so."]
    if linked.contradictory_pairs:
        pairs = [(index.spelling(left), index.spelling(right)) for left, right in linked.contradictory_pairs]
        sentences += [
            f"{len(pairs)} {_pluralize_pairs(len(pairs))} decided to be the same stayed apart, because other "
            "decisions say so: "
            + _join_limited(
                [f"{canonical_json(dict(left))} and {canonical_json(dict(right))}" for left, right in pairs]
            )
        ]
    if index.unknown_identities:
        sentences += [
            "Decided on, but named by no record: "
            + _join_limited([canonical_json(dict(name)) for name in index.unknown_identities])
        ]
    if unfollowed := [
        f"{each.field!r} of {canonical_json(dict(each.record))}" for each in index.unapplied_choices(considered)
    ]:
        sentences += [
            "Chosen for what is no field of that record, or is decided with others: " + _join_limited(unfollowed)
        ]
    return " ".join(sentences)


def make_link_table(index: RecordIndex) -> tuple[Table, ...]:
    """Return the table of linked identities, if any."""
    rows = [
        {
            "left": dict(index.spelling(link.left)),
            "right": dict(index.spelling(link.right)),
            "score": link.score,
            "why": link.why,
        }
        for link in index.linkage.links
    ]
    note = "Of n identities that were taken for the same, the n - 1 links by which they were, the most alike first."
    return (
        (Table.model_validate({"name": LINKS, "title": "Taken for the same", "rows": rows, "note": note}),)
        if rows
        else ()
    )


def _pluralize_pairs(count: int) -> str:
    return "pair" if count == 1 else "pairs"


def _join_limited(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more + "."
