"""Records merged once more for the audit: from the answers and the documented rules, without the code that merges.

It follows the description of `MergeRecords`, on plain lists of claims, and returns what a merge must be: entries, field
rows, flags, ledger and the table of sources' weights. Shared with the integrator are only the parts that say what is
compared, not what comes of it: the identity of a record, the links between identities, the rule of a field, and the
order of values.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from math import fsum
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from prefect_dispatch.integrators.base import unanswered
from prefect_dispatch.integrators.merge_records.field_rules import (
    DEFAULT_WEIGHT,
    Claim,
    as_elements,
    make_size_key,
    time_sort_key,
)
from prefect_dispatch.integrators.merge_records.fold import element_key
from prefect_dispatch.integrators.merge_records.identities import has_identity
from prefect_dispatch.models.ledger import FieldRow, Flag, LedgerRow, Loser, Ref
from prefect_dispatch.security.escaping import join_names, shorten
from prefect_dispatch.serialization.json_text import digest
from prefect_dispatch.serialization.json_values import (
    content_text,
    exact_text,
    get_at,
    is_empty_value,
    pointer,
    value_order,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.merge_records.field_rules import Path, Rule, Rulebook, Source
    from prefect_dispatch.integrators.merge_records.grouping import RecordIndex
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.serialization.json_values import Key

_KEY_FIRST = 1 << 62
_SHOWN_SOURCES, _SHOWN_CHARS = 3, 60
_LEDGER_ORDER = ("merged", "duplicate_of", "overridden")
Weights = dict["Source | None", "SourceWeights"]


class SourceWeights(NamedTuple):
    """How much each source weighs under the rule `trust`."""

    kind: Source
    """What counts as one source."""
    names: Mapping[Ref, str]
    """The source of each outcome."""
    weights: Mapping[str, float]
    """The weight of each source about which something is known."""
    counted: Mapping[str, int]
    """The number of claims of each source that count."""

    def weigh(self, name: str) -> float:
        """Return the weight of a source."""
        return self.weights.get(name, DEFAULT_WEIGHT)


class Decided(NamedTuple):
    """What must be recorded about one field."""

    path: Path
    rule: str
    winner: JsonValue
    backers: Sequence[Claim]
    losers: Sequence[Claim] = ()
    needed: Sequence[Claim] = ()
    """Backers without which a part of the winner would be missing."""
    doubts: Sequence[tuple[str, str]] = ()
    """Kind and message of each flag."""
    of: Source | None = None
    """What the rule `trust` takes for a source."""


class ExpectedRecords(NamedTuple):
    """What a merge of records must have."""

    entries: list[JsonValue]
    fields: tuple[FieldRow, ...]
    flags: tuple[Flag, ...]
    ledger: tuple[LedgerRow, ...]
    trust: Weights
    """The sources' weights, if a rule needs them."""
    trust_rows: tuple[dict[str, JsonValue], ...]
    """The rows of the table of weights."""
    considered: set[tuple[Key, Path]]
    """Records and fields for which a value was chosen by a reviewer."""


def recompute_records(outcomes: Sequence[Outcome], index: RecordIndex, book: Rulebook, *, at: str) -> ExpectedRecords:
    """Return what the merge of outcomes must have.

    Args:
        outcomes: All outcomes, sorted by reference.
        index: The identities of their records.
        book: The rules.
        at: Name of the list of entries in the merged value.
    """
    groups = _group_records(outcomes, index)
    choices = index.choices_by_record()
    trust = _weigh_sources(groups, book, outcomes)
    # 1. Merge each group; linked ones are sorted by the identity that they have afterwards.
    merged: list[tuple[Key, Key, JsonValue, list[Decided]]] = []
    for head, claims in groups:
        if has_identity(head):
            entry, decided = _Fold(book, choices.get(head, {}), trust).merge(claims, (), ())
        else:
            entry, decided = claims[0].value, [Decided((), "kept", claims[0].value, claims, (), claims)]
        merged.append((index.entry_order(head, entry), head, entry, decided))
    merged.sort(key=lambda each: each[0])
    # 2. Record each decision at its place, and where each outcome ended.
    fields: list[FieldRow] = []
    flags: list[Flag] = []
    ends: dict[int, list[LedgerEnd]] = defaultdict(list)
    considered: set[tuple[Key, Path]] = set()
    for number, (_, head, _, decided) in enumerate(merged):
        for each in decided:
            path = pointer(at, number, *each.path)
            fields.append(_row(each, path))
            flags += _flags(each, path)
        for place, end in _list_ends(decided).items():
            ends[place].append(end)
        chosen = choices.get(head, {})
        considered |= {(head, path) for path in chosen if any(each.path[: len(path)] == path for each in decided)}
    rows = (unanswered(outcome) or _ledger_row(outcome, ends[place]) for place, outcome in enumerate(outcomes))
    entries = [entry for _, _, entry, _ in merged]
    return ExpectedRecords(
        entries, tuple(fields), tuple(flags), tuple(rows), trust, tuple(_weight_rows(trust)), considered
    )


def _group_records(outcomes: Sequence[Outcome], index: RecordIndex) -> list[tuple[Key, list[Claim]]]:
    """Return the records of each entry as claims in order of preference, with the key that they share."""
    together: dict[Key, list[Claim]] = defaultdict(list)
    alone: list[tuple[Key, list[Claim]]] = []
    pieces = [index.pieces(outcome) for outcome in outcomes]
    counts = Counter(key for own in pieces for key, _ in own)
    for place, (outcome, own) in enumerate(zip(outcomes, pieces, strict=True)):
        ref = Ref.of(outcome)
        for key, piece in own:
            # A text that nothing is compared with is not needed: it takes time for a large record.
            text = exact_text(piece.value) if counts[key] > 1 or not has_identity(key) else ""
            rank = (-outcome.brief_priority, -outcome.item_priority, text, place)
            claim = Claim(piece.value, "", ref, piece.value, rank)
            if not has_identity(key):
                alone.append((key, [claim._replace(text=content_text(piece.value))]))
                continue
            if piece.item_key_part is not None:  # the item's key precedes all values of all answers
                first = (rank[0] - _KEY_FIRST, *rank[1:])
                together[key].append(Claim(piece.item_key_part, "", ref, piece.item_key_part, first))
            together[key].append(claim)
    groups = [(key, sorted(claims, key=lambda claim: claim.rank)) for key, claims in together.items()]
    return sorted([*groups, *alone], key=lambda group: (group[0], group[1][0].rank[2:]))


class _Fold:
    """Merges the records of one identity by the rules."""

    def __init__(self, book: Rulebook, choices: Mapping[Path, JsonValue], trust: Weights) -> None:
        self._book, self._choices, self._trust = book, choices, trust

    def merge(self, records: Sequence[Claim], keys: Path, path: Path) -> tuple[JsonValue, list[Decided]]:
        """Return several objects as one, with what was decided on each field.

        Args:
            records: Claims whose values are the objects, in order of preference.
            keys: The path that rules are looked up by, without places in lists.
            path: The path in the merged record.
        """
        by_field: dict[str, list[Claim]] = defaultdict(list)
        for record in records:
            for name, value in cast("dict[str, JsonValue]", record.value).items():
                by_field[name].append(record._replace(value=value, text=content_text(value)))
        entry: dict[str, JsonValue] = {}
        decided: list[Decided] = []
        for name in sorted(by_field):
            claims = [claim for claim in by_field[name] if claim.value is not None] or by_field[name]
            entry[name], about = self._merge_field(claims, (*keys, name), (*path, name))
            decided += about
        return entry, decided

    def _merge_field(self, claims: Sequence[Claim], keys: Path, path: Path) -> tuple[JsonValue, list[Decided]]:
        """Return the value of a field: a reviewer's choice if some record has it, else by the rules."""
        if keys != path or keys not in self._choices:
            return self._by_rule(claims, keys, path)
        text = content_text(self._choices[keys])
        same, others = _split(claims, text)
        if same:
            return same[0].value, [Decided(path, "decided", same[0].value, same, others, same[:1])]
        value, (first, *more) = self._by_rule(claims, keys, path)
        doubt = (
            "decision",
            f"The chosen value {shorten(text, _SHOWN_CHARS)} is in no record; the rule decided instead.",
        )
        return value, [first._replace(doubts=[doubt, *first.doubts]), *more]

    def _by_rule(self, claims: Sequence[Claim], keys: Path, path: Path) -> tuple[JsonValue, list[Decided]]:
        """Return the value of a field by its rule: element by element, key by key, or as a whole."""
        identity = self._book.element_identity(keys)
        if identity and claims[0].value is not None and any(claim.value != [] for claim in claims):
            return self._merge_elements(claims, identity, keys, path)
        if not identity and self._book.has_nested_rules(keys):
            filled = [claim for claim in claims if not is_empty_value(claim.value)]
            if filled and all(isinstance(claim.value, dict) for claim in filled):
                return self.merge(filled, keys, path)
        one = self._decide(claims, keys, path)
        return one.winner, [one]

    def _merge_elements(
        self, claims: Sequence[Claim], identity: Sequence[Path], keys: Path, path: Path
    ) -> tuple[JsonValue, list[Decided]]:
        """Return lists as one: elements of one identity are merged like records, others stand once by content."""
        rule = self._book.settings(keys).name
        named: dict[Hashable, list[Claim]] = {}
        order: list[tuple[bool, Any]] = []
        for claim in claims:
            for element in as_elements(claim.value):
                key = element_key(element, identity)
                group = (key is None, (value_order(element),) if key is None else key)
                if group not in named:
                    order.append(group)
                named.setdefault(group, []).append(claim._replace(value=element, text=content_text(element)))
        elements: list[JsonValue] = []
        decided: list[Decided] = []
        for group in sorted(order) if rule == "union" else order:
            place = (*path, str(len(elements)))
            members = named[group]
            if group[0]:
                value, about = members[0].value, [Decided(place, rule, members[0].value, members, (), members[:1])]
            else:
                value, about = self.merge(members, keys, place)
            elements.append(value)
            decided += about
        empty, filled = [c for c in claims if c.value == []], [c for c in claims if c.value != []]
        if empty:
            decided = [Decided(path, rule, [*elements], filled, empty, filled[:1]), *decided]
        return elements, decided

    def _decide(self, claims: Sequence[Claim], keys: Path, path: Path) -> Decided:
        """Return the decision on a field as a whole."""
        settings = self._book.settings(keys)
        rule, name = settings.rule, settings.name
        if claims[0].value is None:
            return Decided(path, name, None, claims)
        disagree = len({claim.text for claim in claims}) > 1
        gathers = name in ("union", "keep_all")
        if disagree and settings.policy == "keep_all" and not gathers:
            gathers, name = True, "keep_all"
        if gathers:
            return _gather(claims, name, path)
        weights = self._trust.get(rule.of) if name == "trust" else None
        winner = _decide_by_weight(claims, weights) if weights else _apply_rule(rule, claims)
        same, others = _split(claims, content_text(winner))
        doubts = [("conflict", _conflict(claims, name))] if disagree and settings.policy == "flag" else []
        # What no record says is computed from all of them.
        return Decided(path, name, winner, same or claims, others, same[:1] or claims, doubts, rule.of)


def _split(claims: Sequence[Claim], text: str) -> tuple[list[Claim], list[Claim]]:
    """Return the claims with a text, and those with another one."""
    return [claim for claim in claims if claim.text == text], [claim for claim in claims if claim.text != text]


def _gather(claims: Sequence[Claim], name: str, path: Path) -> Decided:
    """Return the decision that keeps the distinct elements of all claims; an empty list yields to others."""
    first: dict[str, tuple[JsonValue, Claim]] = {}
    for claim in claims:
        for element in as_elements(claim.value):
            first.setdefault(content_text(element), (element, claim))
    winner = [element for element, _ in first.values()]
    if name == "union":
        winner.sort(key=value_order)
    filled, empty = [c for c in claims if c.value != []], [c for c in claims if c.value == []]
    needed = list({id(claim): claim for _, claim in first.values()}.values())
    return Decided(path, name, winner, filled or claims, empty if winner else (), needed or claims[:1])


def _apply_rule(rule: Rule, claims: Sequence[Claim]) -> JsonValue:
    """Return the value that a rule selects; of equals the first in order of preference."""
    if callable(rule.rule):
        return rule.decide(claims)  # the user's own function
    size = make_size_key([claim.value for claim in claims])
    measures: dict[str, Callable[[Claim], Any]] = {
        "priority": lambda _: 0,
        "longest": lambda claim: len(claim.value if isinstance(claim.value, str) else claim.text),
        "max": lambda claim: size(claim.value),
        "min": lambda claim: size(claim.value),
        "newest": lambda claim: time_sort_key(get_at(claim.record, rule.by.split("."))),
    }
    if rule.rule in ("majority", "trust"):
        outcomes: dict[str, set[Ref]] = defaultdict(set)
        for claim in claims:
            outcomes[claim.text].add(claim.source)
        measures["majority"] = measures["trust"] = lambda claim: len(outcomes[claim.text])
    measured = [measures[rule.rule](claim) for claim in claims]
    return claims[measured.index(min(measured) if rule.rule == "min" else max(measured))].value


def _decide_by_weight(claims: Sequence[Claim], sources: SourceWeights) -> JsonValue:
    """Return the value whose sources weigh most; ties go to the higher priority, then by a hash of the sources."""
    names: dict[str, set[str]] = defaultdict(set)
    for claim in claims:
        names[claim.text].add(sources.names[claim.source])
    weights = {text: round(fsum(map(sources.weigh, each)), 6) for text, each in names.items()}
    most = max(weights.values())
    heaviest = [claim for claim in claims if weights[claim.text] == most]
    everyone = sorted(set[str]().union(*names.values()))

    def lot(claim: Claim) -> tuple[int, int, str]:
        return (*claim.rank[:2], digest([cast("JsonValue", everyone), sources.names[claim.source]]))

    text = min(heaviest, key=lot).text
    return next(claim.value for claim in claims if claim.text == text)


def _conflict(claims: Sequence[Claim], rule: str) -> str:
    """Return the message of a flag on a field on which records disagree."""
    sides: dict[str, list[Claim]] = defaultdict(list)
    for claim in claims:
        sides[claim.text].append(claim)
    texts = [
        f"{join_names(_sources(each), _SHOWN_SOURCES)}: {shorten(text, _SHOWN_CHARS)}" for text, each in sides.items()
    ]
    return f"Records disagree, and rule {rule!r} decided. {'; '.join(texts)}."


def _sources(claims: Iterable[Claim]) -> tuple[Ref, ...]:
    """Return the outcomes of claims, each once, in their order."""
    by_place = {claim.rank[-1]: claim.source for claim in claims}
    return tuple(by_place[place] for place in sorted(by_place))


def _row(decided: Decided, path: str) -> FieldRow:
    losers: dict[str, list[Claim]] = defaultdict(list)
    for claim in decided.losers:
        losers[claim.text].append(claim)
    row = FieldRow(path=path, winner=decided.winner, rule=decided.rule, sources=_sources(decided.backers))
    lost = tuple(Loser(value=each[0].value, sources=_sources(each)) for each in losers.values())
    return row.model_copy(update={"losers": lost}) if lost else row


def _flags(decided: Decided, path: str) -> Iterator[Flag]:
    for kind, message in decided.doubts:
        text = decided.winner if isinstance(decided.winner, str) else content_text(decided.winner)
        sources = _sources([*decided.backers, *decided.losers])
        yield Flag(path=path, kind=kind, text=text, message=message, sources=sources)


class LedgerEnd(NamedTuple):
    """Where an outcome's part in one record ended."""

    disposition: str
    by: Ref | None = None
    reason: str = ""


def _list_ends(decided: Sequence[Decided]) -> dict[int, LedgerEnd]:
    """Return where each outcome with a part in a record ended, by the outcome's place."""
    needed = {claim.rank[-1] for each in decided for claim in each.needed}
    lost: dict[int, list[Decided]] = defaultdict(list)
    shared: dict[int, Counter[Ref]] = defaultdict(Counter)
    for each in decided:
        for claim in each.losers:
            lost[claim.rank[-1]].append(each)
        for claim in each.backers:
            shared[claim.rank[-1]].update(first.source for first in each.needed[:1])
    kept = "kept as it is, for it has no identity" if decided[0].rule == "kept" else ""
    ends: dict[int, LedgerEnd] = {}
    for place in sorted(needed | lost.keys() | shared.keys()):
        if place in needed:
            ends[place] = LedgerEnd("merged", None, kept)
        elif place in lost:
            first, more = lost[place][0], len({each.path for each in lost[place]}) - 1
            reason = f"rule {first.rule!r} on field {'.'.join(first.path)!r}{f' and {more} more' if more else ''}"
            ends[place] = LedgerEnd("overridden", first.needed[0].source, reason)
        else:
            ends[place] = LedgerEnd("duplicate_of", shared[place].most_common(1)[0][0], "equal record")
    return ends


def _ledger_row(outcome: Outcome, ends: Sequence[LedgerEnd]) -> LedgerRow:
    """Return the ledger row of an answer: the best of its ends; of several, a count of each."""
    best = min(
        ends, key=lambda end: _LEDGER_ORDER.index(end.disposition), default=LedgerEnd("merged", None, "no records")
    )
    reason = best.reason
    if not reason or len(ends) > 1:
        kept = sum(end.disposition == "merged" and bool(end.reason) for end in ends)
        merged = sum(end.disposition == "merged" for end in ends) - kept
        parts = [f"{merged} record{'s' if merged > 1 else ''} merged"] if merged else []
        parts += [f"{kept} kept without identity"] if kept else []
        for disposition, words in (("duplicate_of", "duplicate of"), ("overridden", "overridden by")):
            others = [str(end.by) for end in ends if end.disposition == disposition]
            if others:
                parts.append(f"{len(others)} {words} {others[0]}{' and others' if len(set(others)) > 1 else ''}")
        reason = ", ".join(parts)
    fields: dict[str, Any] = {"disposition": best.disposition, "reason": reason, **({"by": best.by} if best.by else {})}
    return LedgerRow(brief=outcome.brief, item=outcome.item, **fields)


def _weigh_sources(
    groups: Iterable[tuple[Key, Sequence[Claim]]], book: Rulebook, outcomes: Sequence[Outcome]
) -> Weights:
    """Return the weights of the sources under each rule `trust`: how often they agree with most of the others."""
    rules = [rule for rule in (book.default, *book.rules.values()) if rule.rule == "trust"]
    if not rules:
        return {}
    default: Source = "item" if len({outcome.brief for outcome in outcomes}) == 1 else "brief"
    kinds: dict[Source | None, Source] = {rule.of: rule.of or default for rule in rules}
    # 1. The fields that `trust` decides, with all claims to them; which these are doesn't depend on the weights.
    contested: dict[Source, list[Sequence[Claim]]] = defaultdict(list)
    fold = _Fold(book, {}, {})
    for key, records in groups:
        if has_identity(key) and len(records) > 1:
            for each in fold.merge(records, (), ())[1]:
                claims = [*each.backers, *each.losers]
                if each.rule == "trust" and each.winner is not None and len(claims) > 1:
                    contested[kinds[each.of]].append(claims)
    # 2. Claims to a field count if two sources have one, and one value has more sources than any other.
    found: dict[Source, SourceWeights] = {}
    for kind in kinds.values():
        names = {Ref.of(each): str(getattr(each, kind)) for each in outcomes if each.status == "succeeded"}
        counted, agreeing = Counter[str](), Counter[str]()
        for contest in contested[kind]:
            votes = {(names[claim.source], claim.text) for claim in contest}
            (top, most), *others = Counter(text for _, text in votes).most_common(2)
            if len({name for name, _ in votes}) > 1 and (not others or most > others[0][1]):
                counted.update(name for name, _ in votes)
                agreeing.update(name for name, text in votes if text == top)
        weights = {name: round(agreeing[name] / count, 6) for name, count in counted.items()}
        found[kind] = SourceWeights(kind, names, weights, counted)
    return {of: found[kind] for of, kind in kinds.items()}


def _weight_rows(trust: Weights) -> Iterator[dict[str, JsonValue]]:
    """Yield the rows of the table of weights, the heaviest source of each kind first."""
    by_kind = {each.kind: each for each in trust.values()}
    for kind in sorted(by_kind):
        each = by_kind[kind]
        for name in sorted(set(each.names.values()), key=lambda name: (-each.weigh(name), name)):
            weight, count = each.weigh(name), each.counted.get(name, 0)
            agreements = round(weight * count)
            yield {"of": kind, "source": name, "weight": weight, "claims": count, "agreements": agreements}
