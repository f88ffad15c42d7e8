"""Group the records of all answers by identity, and merge each group into one entry."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from prefect_dispatch.integrators.base import gaps_as_outcomes, unanswered
from prefect_dispatch.integrators.merge_records.field_rules import RecordPart
from prefect_dispatch.integrators.merge_records.fold import keep_unmerged, merge_parts
from prefect_dispatch.integrators.merge_records.identities import (
    KEY_FIELD,
    MISSING,
    has_identity,
    key_without_identity,
    to_evidence,
)
from prefect_dispatch.integrators.merge_records.linkage import LinkResult, link_keys, split_vectors
from prefect_dispatch.models.ledger import LedgerRow, Proposal, Ref, Table
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.security.escaping import count_noun
from prefect_dispatch.serialization.json_values import exact_text, get_at, pointer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from pydantic import JsonValue

    from prefect_dispatch.integrators.merge_records.field_rules import FieldDecision, Path, Rulebook
    from prefect_dispatch.integrators.merge_records.identities import Identities, Piece
    from prefect_dispatch.integrators.merge_records.linkage import Pairs, Vector
    from prefect_dispatch.integrators.merge_records.similarity import Matching
    from prefect_dispatch.models.decisions import Choice, Decisions, Identity
    from prefect_dispatch.models.ledger import FieldRow, Flag, Merge
    from prefect_dispatch.serialization.json_values import Key, Order


_AHEAD = 1 << 62
"""Added to the priority of an item key, so that it precedes every value of every answer."""
_IndexedPiece = tuple[int, "Outcome", "Piece"]
"""Index of the outcome, the outcome, and a piece of its answer."""


class RecordGroup(NamedTuple):
    """The parts of one entry of the merged value."""

    key: Key
    """The identity key that they share; of linked identities, the first."""
    parts: list[RecordPart]
    """In order of preference."""


class RecordIndex:
    """Index of the records of all answers, by identity.

    Records of one identity that contradict each other in a compared field have different keys: that of the identity,
    followed by the values of the compared fields in the first of them.

    Attributes:
        identities: Finds the records of an answer and their identities.
        unknown_identities: Identities in the reviewers' decisions that no record has.
        ambiguous_identities: Identities decided to be the same as others that several records have, which contradict
            each other.
        linkage: Identities that are the same although they are spelled differently.
    """

    def __init__(
        self,
        outcomes: Sequence[Outcome],
        identities: Identities,
        matching: Matching | None = None,
        decisions: Decisions | None = None,
    ) -> None:
        """Index the records of outcomes, which are sorted by reference."""
        is_learned = bool(matching and matching.model)
        self.identities = replace(identities, partial=is_learned)
        self._pieces_by_outcome = {(each.brief, each.item): self.identities.pieces(each) for each in outcomes}
        if is_learned and not identities.compared:
            self.identities = replace(self.identities, compared=self._find_fields())
        self._pieces: dict[Key, list[_IndexedPiece]] = defaultdict(list)
        for position, outcome in enumerate(outcomes):
            for piece in self._pieces_by_outcome[outcome.brief, outcome.item]:
                self._pieces[piece.key].append((position, outcome, piece))
        self._compared = [field.split(".") for field in self.identities.compared]
        self._vectors: dict[Key, list[Vector]] = {}
        self._split: dict[Key, list[Key]] = {}
        if self._compared or is_learned:
            self._split_identities(is_learned=is_learned)
        self.unknown_identities: list[Identity] = []
        self.ambiguous_identities: list[Identity] = []
        same = self._decided_pairs(decisions.same, unique=True) if decisions else ()
        apart = self._decided_pairs(decisions.different, unique=False) if decisions else ()
        self._choices = decisions.fields if decisions else ()
        self._note_unknown([each.record for each in self._choices])
        self.linkage = self._link_identities(matching, same, apart) if matching or same else LinkResult({})

    def _find_fields(self) -> tuple[str, ...]:
        """Return the fields of all records that are not, and don't hold, a part of the identity."""
        values = [piece.value for pieces in self._pieces_by_outcome.values() for piece in pieces]
        names = {name for value in values if isinstance(value, dict) for name in value}
        return tuple(sorted(name for name in names - {path[0] for path in self.identities.paths} if "." not in name))

    def _split_identities(self, *, is_learned: bool) -> None:
        """Give records of one identity keys of their own if they contradict each other; for a model, if they differ.

        To a learned model, equal identities are evidence like all else.
        """
        keys: dict[tuple[Key, Vector], Key] = {}
        for key in [key for key in self._pieces if has_identity(key)]:
            pieces = self._pieces[key]
            vectors = [self._vector(piece.value) for _, _, piece in pieces]
            clusters = [[vector] for vector in sorted(set(vectors))] if is_learned else split_vectors(vectors)
            if len(clusters) == 1 and MISSING not in key[1]:
                self._vectors[key] = clusters[0]
                continue
            del self._pieces[key]
            self._split[key] = [(key[0], (*key[1], *cluster[0])) for cluster in clusters]
            for own, cluster in zip(self._split[key], clusters, strict=True):
                self._vectors[own] = cluster
                keys |= {(key, vector): own for vector in cluster}
            for vector, (position, outcome, piece) in zip(vectors, pieces, strict=True):
                own = keys[key, vector]
                self._pieces[own].append((position, outcome, piece._replace(key=own)))
        if self._split:
            self._pieces_by_outcome = {
                name: [
                    piece._replace(key=keys[piece.key, self._vector(piece.value)])
                    if piece.key in self._split
                    else piece
                    for piece in pieces
                ]
                for name, pieces in self._pieces_by_outcome.items()
            }

    def _vector(self, record: JsonValue) -> Vector:
        """Return the values of the compared fields in a record."""
        return tuple(to_evidence(get_at(record, path)) for path in self._compared)

    def keys_of(self, identity: Identity) -> list[Key]:
        """Return the keys of the records that an identity names, sorted; several if these contradict each other.

        Values of compared fields in it select among these.
        """
        key = self.identities.key_of(identity)
        if key is None:
            return []
        keys = self._split.get(key) or ([key] if key in self._pieces else [])
        if evidence := self.identities.evidence_of(identity):
            # Of one record, if there is one with all these values; else of several that are one.
            vectors = {key: [{(at, vector[at]) for at in evidence} for vector in self._vectors[key]] for key in keys}
            wanted = set(evidence.items())
            keys = [key for key in keys if wanted in vectors[key]] or [
                key for key in keys if wanted <= set().union(*vectors[key])
            ]
        return keys

    def groups(self) -> list[RecordGroup]:
        """Return the groups of parts, sorted by identity; a part without an identity is a group of its own."""
        together: dict[Key, list[_IndexedPiece]] = defaultdict(list)
        groups: list[RecordGroup] = []
        for key, pieces in self._pieces.items():
            if has_identity(key):
                together[self.linkage.head(key)] += pieces
            else:
                groups += [RecordGroup(key, _make_parts([piece])) for piece in pieces]
        groups += [RecordGroup(key, _make_parts(pieces)) for key, pieces in together.items()]
        return sorted(groups, key=lambda group: (group.key, group.parts[0].rank[2:]))

    def pieces(self, outcome: Outcome) -> list[tuple[Key, Piece]]:
        """Return the records of an answer, each with the key of the entry that it belongs to."""
        return [(self.linkage.head(piece.key), piece) for piece in self._pieces_by_outcome[outcome.brief, outcome.item]]

    def parts(self, outcome: Outcome) -> list[tuple[Key, JsonValue]]:
        """Return the records of an answer, each with the key of its entry; the item's key as a record of its own."""
        return [
            (key, value)
            for key, piece in self.pieces(outcome)
            for value in (piece.item_key_part, piece.value)
            if value is not None
        ]

    def scope(self, entry: JsonValue, at: int, *, alone: bool) -> Key:
        """Return the key of the parts of answers that an entry of a merged value was made of.

        Args:
            entry: The entry.
            at: Its index: if records of one identity were kept apart, entries are in the order of their keys.
            alone: Whether it was kept unchanged, because it has no identity.
        """
        if alone:
            return key_without_identity(entry)
        key = self.identities.key(entry)
        if not self._split:
            return self.linkage.head(key)
        return self._entry_keys[at] if at < len(self._entry_keys) else key

    def count_separated(self) -> int:
        """Return the number of complete identities whose records are not one."""
        return sum(
            MISSING not in key[1] and len({self.linkage.head(own) for own in keys}) > 1
            for key, keys in self._split.items()
        )

    @cached_property
    def _entry_keys(self) -> list[Key]:
        """The key of each entry of the merged value, if records are kept apart by compared fields."""
        return [group.key for group in self.groups()]

    def entry_order(self, head: Key, entry: JsonValue) -> Key:
        """Return the sort key of an entry: its key; of linked ones, the identity that it has after merging.

        If equal identities are kept apart, that identity doesn't say which of them it is: the key is taken then.
        """
        return self.identities.key(entry) if head in self.linkage.heads and not self._split else head

    def choices_by_record(self) -> dict[Key, dict[Path, JsonValue]]:
        """Return the values chosen by a reviewer, by record and field.

        Fields of an identity that is taken from one record as a whole are left out.
        """
        choices: dict[Key, dict[Path, JsonValue]] = defaultdict(dict)
        for choice in self._choices:
            path = tuple(choice.field.split("."))
            for key in self.keys_of(choice.record) if not self.identities.is_taken_whole(path) else ():
                choices[self.linkage.head(key)][path] = choice.value
        return choices

    def unapplied_choices(self, considered: AbstractSet[tuple[Key, Path]]) -> list[Choice]:
        """Return choices for records that exist, but for a field that no decision of its own was made on.

        Args:
            considered: Records and fields for which a choice was considered.
        """
        return [
            choice
            for choice in self._choices
            if (keys := self.keys_of(choice.record))
            and not any((self.linkage.head(key), tuple(choice.field.split("."))) in considered for key in keys)
        ]

    def spelling(self, key: Key) -> Identity:
        """Return the identity as the records spell it: the smallest spelling, so that their order doesn't matter.

        If others of this identity contradict it, the values of the compared fields are included.
        """
        pieces = [piece for _, _, piece in self._pieces[key]]
        if len(key[1]) == len(self.identities.fields):
            return min(map(self.identities.original_spelling, pieces), key=exact_text)
        return min(
            (
                {**self.identities.original_spelling(piece), **self._spell_evidence(piece)}
                for piece in pieces
                if self._vector(piece.value) == self._vectors[key][0]
            ),
            key=exact_text,
        )

    def _spell_evidence(self, piece: Piece) -> Identity:
        """Return the values of the compared fields in a record, null for what says nothing."""
        fields = zip(self.identities.compared, self._compared, self._vector(piece.value), strict=True)
        return {name: None if value == MISSING else get_at(piece.value, path) for name, path, value in fields}

    def _sources(self, key: Key) -> tuple[Ref, ...]:
        """Return the outcomes that have a record of this identity, in order."""
        refs = {position: Ref.of(outcome) for position, outcome, _ in self._pieces[key]}
        return tuple(refs[position] for position in sorted(refs))

    def proposals(self) -> tuple[Proposal, ...]:
        """Return the pairs proposed for review, the most similar first."""
        return tuple(
            Proposal(
                left=self.spelling(pair.left),
                right=self.spelling(pair.right),
                score=pair.score,
                why=pair.why,
                left_sources=self._sources(pair.left),
                right_sources=self._sources(pair.right),
            )
            for pair in self.linkage.proposals
        )

    def link_tables(self) -> tuple[Table, ...]:
        """Return the table of linked identities, if there are any."""
        rows: list[dict[str, JsonValue]] = [
            {
                "left": dict(self.spelling(link.left)),
                "right": dict(self.spelling(link.right)),
                "score": link.score,
                "why": link.why,
            }
            for link in self.linkage.links
        ]
        note = "Of n identities that were taken for the same, the n - 1 links by which they were, the most alike first."
        return (Table(name=LINKS, title="Taken for the same", rows=tuple(rows), note=note),) if rows else ()

    def _decided_pairs(self, pairs: Sequence[tuple[Identity, Identity]], *, unique: bool) -> Pairs:
        """Return the pairs of keys that decisions are about, and note the identities without any, or with several.

        Args:
            pairs: The pairs of identities.
            unique: Whether an identity that several records have, which contradict each other, decides nothing.
        """
        found: set[tuple[Key, Key]] = set()
        for pair in pairs:
            if not self._note_unknown(pair):
                continue
            sides = [*map(self.keys_of, pair)]
            if several := [name for name, keys in zip(pair, sides, strict=True) if unique and len(keys) > 1]:
                self.ambiguous_identities += [name for name in several if name not in self.ambiguous_identities]
                continue
            found |= {(min(each), max(each)) for each in product(*sides) if each[0] != each[1]}
        return tuple(sorted(found))

    def _note_unknown(self, identities: Iterable[Identity]) -> bool:
        """Return whether records of all these identities exist, and note the identities without any."""
        missing = [name for name in identities if not self.keys_of(name)]
        self.unknown_identities += [name for name in missing if name not in self.unknown_identities]
        return not missing

    def _link_identities(self, matching: Matching | None, same: Pairs, apart: Pairs) -> LinkResult:
        """Return which identities are the same."""
        keys = tuple(sorted(key for key in self._pieces if has_identity(key)))
        none: tuple[tuple[Order, ...], ...] = ()
        evidence = tuple(
            tuple(tuple(sorted({*column} - {MISSING})) for column in zip(*self._vectors[key], strict=True))
            if self._compared
            else none
            for key in keys
        )
        hashable: Any = matching  # it is frozen, which type checkers don't see
        return link_keys(keys, self.identities.fields, self.identities.compared, evidence, hashable, same, apart)


def _make_parts(pieces: Sequence[_IndexedPiece]) -> list[RecordPart]:
    """Return pieces as parts of one record, in order of preference: the item keys take precedence over all pieces."""
    parts: list[RecordPart] = []
    for place, outcome, piece in pieces:
        # The text breaks ties; a single piece without an identity is sorted by it, too.
        is_compared = len(pieces) > 1 or not has_identity(piece.key)
        first = (-outcome.item_priority, exact_text(piece.value) if is_compared else "", place)
        source = Ref.of(outcome)
        if piece.item_key_part is not None:
            parts.append(RecordPart(piece.item_key_part, source, (-outcome.brief_priority - _AHEAD, *first)))
        parts.append(RecordPart(piece.value, source, (-outcome.brief_priority, *first)))
    return sorted(parts, key=lambda part: part.rank)


class _Verdict(NamedTuple):
    """Result of an outcome's part in one merged record, as the ledger shows it."""

    disposition: Literal["merged", "duplicate_of", "overridden"]
    by: Ref | None = None
    reason: str = ""


_MERGED = _Verdict("merged")
_KEPT = _Verdict("merged", None, "kept as it is, for it has no identity")


def make_ledger(outcomes: Sequence[Outcome], records: Iterable[Sequence[FieldDecision]]) -> tuple[LedgerRow, ...]:
    """Return the ledger: one row for each outcome.

    Args:
        outcomes: All outcomes; the last number of a claim's rank is an index into this list.
        records: For each merged record, the decisions on its fields.
    """
    verdicts: dict[int, list[_Verdict]] = defaultdict(list)
    for decisions in records:
        for position, verdict in _verdicts(decisions).items():
            verdicts[position].append(verdict)
    return tuple(
        unanswered(outcome) or _make_ledger_row(outcome, verdicts[position])
        for position, outcome in enumerate(outcomes)
    )


def _verdicts(decisions: Sequence[FieldDecision]) -> dict[int, _Verdict]:
    """Return, for one merged record, the verdict on each outcome that has a part in it, by the outcome's index."""
    # 1. Fast path: a record from one outcome alone. Another outcome with a part in it would back the identity, too.
    carrying = {claim.rank[-1] for decision in decisions for claim in decision.carriers}
    if len(carrying) == 1 and all(len(each.backers) == 1 and not each.losers for each in decisions):
        [position] = carrying
        return {position: _KEPT if decisions[0].rule == "kept" else _MERGED}
    # 2. Collect, by outcome, the decisions that removed a value, and the outcomes that it agrees with.
    overridden: dict[int, list[FieldDecision]] = defaultdict(list)
    agreements: dict[int, Counter[Ref]] = defaultdict(Counter)
    for decision in decisions:
        for claim in decision.losers:
            overridden[claim.rank[-1]].append(decision)
        for claim in decision.backers:
            agreements[claim.rank[-1]].update(carrier.source for carrier in decision.carriers[:1])
    # 3. An outcome that contributes a value is merged, else one with a removed value overridden, else a duplicate.
    verdicts: dict[int, _Verdict] = {}
    for position in sorted(carrying | agreements.keys() | overridden.keys()):
        if position in carrying:
            verdicts[position] = _KEPT if decisions[0].rule == "kept" else _MERGED
        elif position in overridden:
            first, more = overridden[position][0], len({decision.path for decision in overridden[position]}) - 1
            field = ".".join(first.path)
            reason = f"rule {first.rule!r} on field {field!r}" + (f" and {more} more" if more else "")
            verdicts[position] = _Verdict("overridden", first.carriers[0].source, reason)
        else:
            [(by, _)] = agreements[position].most_common(1)
            verdicts[position] = _Verdict("duplicate_of", by, "equal record")
    return verdicts


def _make_ledger_row(outcome: Outcome, verdicts: Sequence[_Verdict]) -> LedgerRow:
    order = ("merged", "duplicate_of", "overridden")
    best = min(
        verdicts, key=lambda verdict: order.index(verdict.disposition), default=_Verdict("merged", None, "no records")
    )
    reason = best.reason if best.reason and len(verdicts) <= 1 else _summarize_verdicts(verdicts)
    row = LedgerRow(brief=outcome.brief, item=outcome.item, disposition=best.disposition, reason=reason)
    return row.model_copy(update={"by": best.by}) if best.by else row  # an unset field takes less memory


def _summarize_verdicts(verdicts: Sequence[_Verdict]) -> str:
    """Return the number of records with each verdict, as a phrase for the ledger."""
    merged, kept = verdicts.count(_MERGED), verdicts.count(_KEPT)
    parts = [f"{count_noun(merged, 'record')} merged"] if merged else []
    parts += [f"{kept} kept without identity"] if kept else []
    for disposition, word in (("duplicate_of", "duplicate of"), ("overridden", "overridden by")):
        by = [str(verdict.by) for verdict in verdicts if verdict.disposition == disposition]
        others = " and others" if len(set(by)) > 1 else ""
        parts += [f"{len(by)} {word} {by[0]}{others}"] if by else []
    return ", ".join(parts)


class MergedEntries(NamedTuple):
    """The merged entries, with ledger, field rows and flags."""

    entries: list[JsonValue]
    """The entries, sorted by identity."""
    ledger: tuple[LedgerRow, ...]
    """One row for each outcome."""
    fields: tuple[FieldRow, ...]
    """One row for each decided field."""
    flags: tuple[Flag, ...]
    """Fields to review."""
    considered_choices: set[tuple[Key, Path]]
    """Records and fields for which a reviewer's choice was considered."""


def merge_groups(
    outcomes: Sequence[Outcome],
    index: RecordIndex,
    groups: Sequence[RecordGroup],
    book: Rulebook,
    choices: Mapping[Key, Mapping[Path, JsonValue]],
    *,
    at: str,
) -> MergedEntries:
    """Merge each group of records into one entry.

    Args:
        outcomes: All outcomes, sorted by reference.
        index: The index that the groups come from.
        groups: The groups.
        book: The rules.
        choices: Values chosen by a reviewer, by record and field.
        at: Name of the list of entries in the merged value.
    """
    entries: list[JsonValue] = []
    fields: list[FieldRow] = []
    flags: list[Flag] = []
    met: set[tuple[Key, Path]] = set()

    def merge_group(group: RecordGroup) -> tuple[JsonValue, list[FieldDecision]]:
        if has_identity(group.key):
            return merge_parts(group.parts, book, choices.get(group.key))
        return group.parts[0].value, [keep_unmerged(group.parts[0])]

    def sort_key(group: RecordGroup) -> Key:
        # Only a linked record has to be merged for it.
        return index.entry_order(group.key, merge_group(group)[0] if group.key in index.linkage.heads else None)

    def decide_groups() -> Iterator[list[FieldDecision]]:
        # A generator makes the rows entry by entry: the decisions of 100,000 entries at once would dominate memory.
        for group in sorted(groups, key=sort_key):
            entry, decisions = merge_group(group)
            head = pointer(at, len(entries))
            entries.append(entry)
            for decision in decisions:
                path = head + pointer(*decision.path)
                fields.append(decision.to_row(path))
                flags.extend(decision.to_flags(path))
            for field in choices.get(group.key, ()):
                if any(decision.path[: len(field)] == field for decision in decisions):
                    met.add((group.key, field))
            yield decisions

    ledger = make_ledger(outcomes, decide_groups())
    return MergedEntries(entries, ledger, tuple(fields), tuple(flags), met)


def to_outcomes(merge: Merge, identities: Identities, *, entries: str) -> list[Outcome]:
    """Return a merged value as outcomes that can be merged again: its records, its gaps, and the linked spellings.

    A merged record has one identity, but may have been made of several linked ones. These follow as additional
    outcomes of a lower priority, so that a second merge links and separates the same identities.

    Args:
        merge: The merge.
        identities: Finds the records of an answer and their identities.
        entries: Name of the list of records in the merged value.
    """
    value: Any = merge.value
    kept_paths = {row.path for row in merge.fields if row.rule == "kept"}
    unidentified = [record for index, record in enumerate(value[entries]) if pointer(entries, index) in kept_paths]
    identified = [record for index, record in enumerate(value[entries]) if pointer(entries, index) not in kept_paths]
    rows = [row for table in merge.tables if table.name == LINKS for row in table.rows]
    spellings = [identities.make_record(cast("Any", row[side])) for row in rows for side in ("left", "right")]
    return [
        *_make_outcomes("merged", identified, identities),
        *([Outcome(brief="kept", item="*", status="succeeded", value=unidentified)] if unidentified else ()),
        *_make_outcomes("spelt", spellings, identities, brief_priority=-1),
        *gaps_as_outcomes(value),
    ]


def _make_outcomes(
    brief: str, records: list[JsonValue], identities: Identities, brief_priority: int = 0
) -> list[Outcome]:
    """Return records as outcomes, grouped by item if the identity has the item's key."""
    answers: dict[str, list[JsonValue]] = defaultdict(list)
    distinct = {json: record for record in records for json in [exact_text(record)]}
    for record in distinct.values():
        item = cast("Any", record)[KEY_FIELD] if identities.by_item else "*"
        answers[item].append(record)
    return [
        Outcome(brief=brief, item=item, status="succeeded", value=answer, brief_priority=brief_priority)
        for item, answer in answers.items()
    ]


LINKS = "links"
"""The table of identities that were taken for the same."""
