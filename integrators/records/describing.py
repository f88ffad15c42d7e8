"""The rules by which records were merged, in words that a reviewer can contest: everything that was configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.integrators.records.rules import FieldRule
from prefect_dispatch.integrators.records.trust import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prefect_dispatch.integrators.records.rulebook import Rulebook
    from prefect_dispatch.integrators.records.rules import Rule

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


def describe(book: Rulebook, identity: str, records: str = "", aliases: str | None = None, chosen: int = 0) -> str:
    """Return the rules in one paragraph.

    Args:
        book: Which rule is for which field, with what was found out about sources.
        identity: How records were told from one another, in words.
        records: Where in an answer the records stand.
        aliases: The path of the decisions file.
        chosen: How many values somebody chose.

    Example:
        >>> from prefect_dispatch.integrators.merge_records import MergeRecords
        >>> book = MergeRecords(identity=("name",), rules={"year": "max"}).book
        >>> words = describe(book, "Records are the same if 'name' is equal.")
        >>> words.partition(". ")[0]
        'An answer is one record or a list of records'
        >>> "'year' becomes the largest value" in words
        True
    """
    return " ".join([_where(records), identity, *_fields(book), *_rules(book), *_decided(aliases, chosen)])


def _where(records: str) -> str:
    if records:
        return f"The records of an answer are the list at {records!r}; what stands beside it is a record, too."
    return "An answer is one record or a list of records."


def _fields(book: Rulebook) -> Iterable[str]:
    said = [f"{'.'.join(path)!r} becomes {_word(rule)}" for path, rule in book.rules.items()]
    yield (
        f"Of records that are the same, {'; '.join([*said, ''])}"
        f"{'every other field' if said else 'each field'} becomes {_word(book.default)}; "
        "but a field of the identity without a rule of its own becomes what the preferred record says."
    )
    yield (
        "Preferred is the record of the brief with the higher priority, then of the item with the higher priority, "
        "then the one with the smaller JSON text; whatever ties falls by that."
    )
    yield "Null never stands against a value."
    yield "A merged record that is not of the form asked for, though each answer is, stands as it is, and is flagged."


def _word(rule: Rule) -> str:
    if rule.by:
        word = f"what the record with the latest {rule.by!r} says"
    else:
        word = _WORDS.get(rule.name, f"what the function {rule.name!r} makes of it")
    if identity := _identity(rule):
        word += f", where objects with equal {' and '.join(map(repr, identity))} are one"
    if rule.of:
        word += f", the source being the {rule.of}"
    if rule.conflicts:
        word += f" (where records disagree about it, {_CONFLICTS[rule.conflicts]})"
    return word


def _rules(book: Rulebook) -> Iterable[str]:
    rules = [*book.rules.values(), book.default]
    names = {rule.name for rule in rules}
    yield f"Where records disagree, {_CONFLICTS[book.conflicts]}; about the identity its rule decides."
    if names & {"max", "min"}:
        yield _SIZES
    if any(rule.by for rule in rules):
        yield "A time without an offset is UTC; what is no time comes before all times."
    if any(len(path) > 1 for path in book.rules):
        yield "An object is merged key by key for a rule about a part of it, unless some record has no object there."
    if any(rule.gathers for rule in rules):
        yield "Where values are gathered, a list counts as its elements, equal ones stand once, an empty list yields."
    if any(map(_identity, rules)):
        yield (
            "The objects of such a list are told apart as records are, by these fields, and merged field by field, by "
            "the rules for their fields or the one for all others; sorted, they come in the order of their identity, "
            "and what has none comes last, once each."
        )
    if "trust" in names:
        yield from _trust(book)
    if own := sorted(name for name in names if ":" in name):
        yield (
            f"{' and '.join(map(repr, own))} may compute what no record says; what it was given then stands among the "
            "values that were removed."
        )


def _identity(rule: Rule) -> tuple[str, ...]:
    return rule.identity if isinstance(rule, FieldRule) else ()


def _trust(book: Rulebook) -> Iterable[str]:
    for known in sorted(book.trust.values(), key=lambda each: each.of):
        several = len({*known.names.values()})
        yield (
            f"A source is {_article(known.of)}: there are {several}. Its weight is the share of its claims that "
            f"most sources agree with (Wawa), or {UNKNOWN} where nothing can be told; that counts fields about which "
            "two sources or more say something and one value has more of them than any other."
        )
        if len({known.weights.get(name, UNKNOWN) for name in known.names.values()}) == 1:
            yield "All sources weigh the same, so the most of them decide, and where they tie, the preferred record."


def _article(kind: str) -> str:
    return f"an {kind}" if kind == "item" else f"a {kind}"


def _decided(aliases: str | None, chosen: int) -> Iterable[str]:
    if aliases:
        yield f"What people decided is in {aliases!r}."
    if chosen:
        yield (
            f"{chosen} {'value was' if chosen == 1 else 'values were'} chosen by somebody; such a one stands, before "
            "any rule, where some record says it."
        )
