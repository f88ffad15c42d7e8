"""How records were told from one another, in words that a reviewer can contest, and what was linked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.fingerprint import canonical
from prefect_dispatch.integrators.records.blocking import WINDOW
from prefect_dispatch.integrators.records.identities import ITEM_KEY
from prefect_dispatch.ledger import Table

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from prefect_dispatch.integrators.records.gathering import Gathered
    from prefect_dispatch.integrators.records.matching import Matching
    from prefect_dispatch.integrators.records.rulebook import Path
    from prefect_dispatch.integrators.values import Key

LINKS = "links"
"""The table of identities that were taken for the same."""
_NAMED = 5
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


def identity_words(
    fields: tuple[str, ...], matching: Matching | None, gathered: Gathered, met: AbstractSet[tuple[Key, Path]]
) -> str:
    """Return how records were told from one another, and which decisions on them could not be followed."""
    texts = [repr(field) for field in fields if field != ITEM_KEY]
    said = [_SAME.format(named=" and ".join(texts) + (" are" if len(texts) > 1 else " is"))] if texts else []
    if len(texts) < len(fields):
        said += ["They" if texts else "Records"]
        said[-1] += " are the same only if they are about one item, whose key stands in the field 'key'."
    if fields == (ITEM_KEY,):
        said += ["Of several records in one answer nothing tells which is which, so each was kept as it is."]
    said += ["What lacks an identity was kept as it is."]
    linked = gathered.linked
    if matching:
        beside = f", with {' and '.join(map(repr, matching.fields))} beside them" if matching.fields else ""
        said += [_ALIKE.format(beside=beside, sure=matching.sure, propose=matching.propose, count=linked.compared)]
        said += [_PASSED.format(window=WINDOW, count=linked.passed_over)] if linked.passed_over else []
    decided = [link for link in linked.links if link.decided]
    if decided:
        said += [f"{len(decided)} {_pairs(len(decided))} became one because somebody decided so."]
    if linked.broken:
        pairs = [(gathered.spelling(left), gathered.spelling(right)) for left, right in linked.broken]
        said += [
            f"{len(pairs)} {_pairs(len(pairs))} decided to be the same stayed apart, because other decisions say so: "
            + _listed([f"{canonical(dict(left))} and {canonical(dict(right))}" for left, right in pairs])
        ]
    if gathered.unknown:
        said += ["Decided on, but named by no record: " + _listed([canonical(dict(name)) for name in gathered.unknown])]
    if unfollowed := [f"{each.field!r} of {canonical(dict(each.record))}" for each in gathered.unfollowed(met)]:
        said += ["Chosen for what is no field of that record, or is decided with others: " + _listed(unfollowed)]
    return " ".join(said)


def link_table(gathered: Gathered) -> tuple[Table, ...]:
    """Return the table of what was linked, if anything was."""
    rows = [
        {
            "left": dict(gathered.spelling(link.left)),
            "right": dict(gathered.spelling(link.right)),
            "score": link.score,
            "why": link.why,
        }
        for link in gathered.linked.links
    ]
    note = "Of n identities that were taken for the same, the n - 1 links by which they were, the most alike first."
    return (
        (Table.model_validate({"name": LINKS, "title": "Taken for the same", "rows": rows, "note": note}),)
        if rows
        else ()
    )


def _pairs(count: int) -> str:
    return "pair" if count == 1 else "pairs"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more + "."
