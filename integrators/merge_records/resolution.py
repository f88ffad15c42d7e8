"""Claims of records to the value of a field, and the built-in rules that resolve conflicts between them.

Claims hold no nulls, and come in order of preference: higher priority of the brief first, then of
the item, then the record with the smaller JSON text. A rule that takes the first of equals thus
breaks every tie by content, never by order of arrival.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import JsonValue, TypeAdapter, ValidationError

from prefect_dispatch.integrators.crowdkit_adapter import Vote, require_crowd_kit, wawa
from prefect_dispatch.models.ledger import FieldRow, Flag, Loser, Ref, Table
from prefect_dispatch.serialization.json_values import content_text, get_at, value_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prefect_dispatch.models.outcome import Outcome


Rank = tuple[int, int, str, int]


class Claim(NamedTuple):
    """Value that one record has for a field."""

    value: JsonValue
    """The value; null only if every record has null there."""
    text: str
    """The value as canonical JSON text, equal for equal values."""
    source: Ref
    """The outcome that the record comes from."""
    record: JsonValue
    """The whole record."""
    rank: Rank
    """Sort key of the order of preference, the most preferred first."""


RuleFunction = Callable[[Sequence[Claim]], JsonValue]
"""A rule: takes one claim or more in order of preference, and returns the JSON value of the merged field."""
_WHEN = TypeAdapter(datetime)
_YEAR = re.compile(r"([0-9]{4})(?:-([0-9]{2}))?")
MONTHS = 12


def priority(claims: Sequence[Claim]) -> JsonValue:
    """Return the value of the claim with the highest priority of its brief, then of its item."""
    return claims[0].value


def majority(claims: Sequence[Claim]) -> JsonValue:
    """Return the value that most outcomes have."""
    voters: dict[str, set[Ref]] = {}
    for claim in claims:
        voters.setdefault(claim.text, set()).add(claim.source)
    return max(claims, key=lambda claim: len(voters[claim.text])).value


def longest(claims: Sequence[Claim]) -> JsonValue:
    """Return the longest text; the length of any other value is that of its JSON."""
    return max(claims, key=lambda claim: len(claim.value if isinstance(claim.value, str) else claim.text)).value


def largest(claims: Sequence[Claim]) -> JsonValue:
    """Return the largest value: numbers by size, then texts by code point, then the rest by its JSON."""
    return max(claims, key=lambda claim: value_order(claim.value)).value


def smallest(claims: Sequence[Claim]) -> JsonValue:
    """Return the smallest value, in the order of `largest`."""
    return min(claims, key=lambda claim: value_order(claim.value)).value


def union(claims: Sequence[Claim]) -> JsonValue:
    """Return the distinct values, sorted; a list counts as its elements."""
    return sorted(_distinct_values(claims), key=value_order)


def keep_all(claims: Sequence[Claim]) -> JsonValue:
    """Return the distinct values in order of preference; a list counts as its elements."""
    return _distinct_values(claims)


def make_newest_rule(by: str) -> RuleFunction:
    """Return the rule that takes the value of the newest record.

    Args:
        by: Dotted path, in the record, of a date or time (ISO 8601, UTC unless it has an
            offset), of a year, of a year and month, or of seconds since 1970. Other texts are older than all
            dates, in text order; records without the field are older still.
    """

    def rule(claims: Sequence[Claim]) -> JsonValue:
        return max(claims, key=lambda claim: _time_sort_key(get_at(claim.record, by.split(".")))).value

    return rule


def as_elements(value: JsonValue) -> list[JsonValue]:
    """Return the elements of a list, or any other value as the only element, for rules that collect values."""
    return value if isinstance(value, list) else [value]


RULES: dict[str, RuleFunction] = {
    "priority": priority,
    "majority": majority,
    "trust": majority,
    "longest": longest,
    "max": largest,
    "min": smallest,
    "union": union,
    "keep_all": keep_all,
}


def _distinct_values(claims: Sequence[Claim]) -> list[JsonValue]:
    distinct: dict[str, JsonValue] = {}
    for claim in claims:
        for element in as_elements(claim.value):
            distinct.setdefault(content_text(element), element)
    return list(distinct.values())


def _time_sort_key(value: JsonValue) -> tuple[int, datetime, str]:
    """Return the sort key of a point in time: missing values first, then other texts, then dates."""
    never = datetime.min.replace(tzinfo=timezone.utc)
    if value is None or isinstance(value, bool):
        return (0, never, "")
    # A year, or a year and month, is the first day of it.
    if (year := _YEAR.fullmatch(str(value))) and 1 <= int(year[2] or 1) <= MONTHS and int(year[1]):
        return (2, datetime(int(year[1]), int(year[2] or 1), 1, tzinfo=timezone.utc), "")
    try:
        when = _WHEN.validate_python(value)
    except ValidationError:
        return (1, never, value if isinstance(value, str) else content_text(value))
    return (2, when if when.tzinfo else when.replace(tzinfo=timezone.utc), "")


class RecordPart(NamedTuple):
    """A record, or another piece of an answer, of one outcome."""

    value: JsonValue
    """The record."""
    source: Ref
    """The outcome."""
    rank: Rank
    """Its place in the order of preference; the last number is the index of the outcome, in order of reference."""


class FlagReason(NamedTuple):
    """Reason why a field should be reviewed."""

    kind: str
    """The kind of the flag that reports it."""
    message: str
    """The reason, as a sentence."""


class FieldDecision(NamedTuple):
    """Decision on the value of one field of a merged record."""

    path: tuple[str, ...]
    """The keys, and the indices in lists merged as sets, that lead from the record to the field."""
    rule: str
    """The rule's name."""
    winner: JsonValue
    """The value of the field."""
    backers: Sequence[Claim]
    """The claims that support the winner, in order of preference."""
    losers: Sequence[Claim]
    """The claims whose value was removed, in order of preference."""
    carriers: Sequence[Claim]
    """The backers that the winner needs: without one of them, a part of it would be missing."""
    flag_reasons: Sequence[FlagReason] = ()
    """Reasons why the field should be reviewed."""
    source_kind: Source | None = None
    """What the rule `trust` treats as one source."""

    def to_row(self, path: str) -> FieldRow:
        """Return the decision as a row of the report; `path` is a JSON Pointer into the merged value."""
        if not self.losers:  # a row takes half the memory if `losers` is not set
            return FieldRow(path=path, winner=self.winner, rule=self.rule, sources=sources_of(self.backers))
        removed: dict[str, list[Claim]] = {}
        for claim in self.losers:
            removed.setdefault(claim.text, []).append(claim)
        return FieldRow(
            path=path,
            winner=self.winner,
            losers=tuple(Loser(value=claims[0].value, sources=sources_of(claims)) for claims in removed.values()),
            rule=self.rule,
            sources=sources_of(self.backers),
        )

    def to_flags(self, path: str) -> list[Flag]:
        """Return the reasons for review as flags of the report; `path` is a JSON Pointer into the merged value."""
        if not self.flag_reasons:
            return []
        text = self.winner if isinstance(self.winner, str) else content_text(self.winner)
        sources = sources_of([*self.backers, *self.losers])
        return [
            Flag(path=path, kind=doubt.kind, text=text, message=doubt.message, sources=sources)
            for doubt in self.flag_reasons
        ]


def sources_of(claims: Sequence[Claim]) -> tuple[Ref, ...]:
    """Return the distinct outcomes of claims, in order of reference."""
    if len(claims) == 1:
        return (claims[0].source,)
    by_position = {claim.rank[-1]: claim.source for claim in claims}
    return tuple(by_position[position] for position in sorted(by_position))


DEFAULT_WEIGHT = 0.5
"""The weight of a source without any informative vote."""


def select_informative_votes(votes: Iterable[Vote]) -> list[Vote]:
    """Return the informative votes: those on items with several sources and a unique most frequent opinion.

    Each vote is returned once, and the votes are sorted.

    Example:
        >>> select_informative_votes([Vote("alone", "a", "x"), Vote("tie", "a", "x"), Vote("tie", "b", "y")])
        []
    """
    backing: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for vote in votes:
        backing[vote.item][vote.opinion].add(vote.agent)
    informative: list[Vote] = []
    for item in sorted(backing):
        counts = sorted((len(agents) for agents in backing[item].values()), reverse=True)
        sources = set[str]().union(*backing[item].values())
        if len(sources) > 1 and counts[0] > max(counts[1:], default=0):
            informative += [Vote(item, agent, opinion) for opinion, agents in backing[item].items() for agent in agents]
    return sorted(informative)


def estimate_weights(votes: Iterable[Vote]) -> dict[str, float]:
    """Return how often each source agrees with most of the other sources, from 0 to 1.

    Args:
        votes: The opinions (`opinion`) of sources (`agent`) on fields (`item`), in any order.

    Returns:
        The sources' weights, by name; sources without an informative vote are left out.

    Raises:
        JobError: If crowd-kit is not installed.

    Example:
        >>> says = {"a": "xxy", "b": "xxx", "c": "xyx"}
        >>> votes = [Vote(str(at), source, values[at]) for source, values in says.items() for at in range(3)]
        >>> estimate_weights(votes)
        {'a': 0.666667, 'b': 1.0, 'c': 0.666667}
    """
    informative = select_informative_votes(votes)
    if not informative:
        return {}
    require_crowd_kit("The rule 'trust'")
    # Replace each opinion by its index among the opinions on its field: texts may be long, and only opinions on one
    # field are compared.
    numbers: dict[str, dict[str, int]] = defaultdict(dict)
    for vote in informative:
        numbers[vote.item].setdefault(vote.opinion, len(numbers[vote.item]))
    numbered = [vote._replace(opinion=str(numbers[vote.item][vote.opinion])) for vote in informative]
    skills = wawa(numbered).skills
    return {source: round(skills[source], 6) for source in sorted(skills)}


def select_by_weight(opinions: Sequence[tuple[str, str]], source_weights: Mapping[str, float]) -> str:
    """Return the value with the greatest total weight of its sources; of equals the first.

    Args:
        opinions: Source and value, in order of preference.
        source_weights: The sources' weights; a missing source weighs `DEFAULT_WEIGHT`.

    Example:
        >>> select_by_weight([("a", "x"), ("b", "y"), ("c", "y")], {"a": 0.9, "b": 0.3, "c": 0.4})
        'x'
    """
    backing: dict[str, set[str]] = {}
    for source, value in opinions:
        backing.setdefault(value, set()).add(source)
    return max(
        backing,
        key=lambda value: round(math.fsum(source_weights.get(each, DEFAULT_WEIGHT) for each in backing[value]), 6),
    )


class Trust(NamedTuple):
    """Estimated reliability of the sources of claims."""

    source_kind: Source
    """What counts as one source."""
    names: Mapping[Ref, str]
    """The name of each outcome's source."""
    weights: Mapping[str, float]
    """The sources' weights, by name."""
    claims: Mapping[str, int]
    """The number of informative claims of each source."""

    def decide(self, claims: Sequence[Claim]) -> JsonValue:
        """Return the value with the greatest total weight of its sources."""
        text = select_by_weight([(self.names[claim.source], claim.text) for claim in claims], self.weights)
        return next(claim.value for claim in claims if claim.text == text)

    def rows(self) -> list[dict[str, JsonValue]]:
        """Return the sources as table rows, the greatest weight first."""
        sources = sorted({*self.names.values()}, key=lambda name: (-self.weights.get(name, DEFAULT_WEIGHT), name))
        return [
            {
                "of": self.source_kind,
                "source": name,
                "weight": self.weights.get(name, DEFAULT_WEIGHT),
                "claims": self.claims.get(name, 0),
                "agreements": round(self.weights.get(name, 0) * self.claims.get(name, 0)),
            }
            for name in sources
        ]


def resolve_source_kind(of: Source | None, outcomes: Iterable[Outcome]) -> Source:
    """Return what counts as one source.

    It is `of` if set, else the item if all outcomes are of one brief, else the brief.

    With one brief for many files, the sources that differ are the files; with several briefs, they are the briefs.
    """
    return of or ("item" if len({outcome.brief for outcome in outcomes}) == 1 else "brief")


def estimate_trust(fields: Iterable[Sequence[Claim]], outcomes: Iterable[Outcome], of: Source) -> Trust:
    """Estimate the reliability of the sources of some claims.

    Args:
        fields: For each field, the claims to its value.
        outcomes: All outcomes.
        of: What counts as one source.
    """
    names = {Ref.of(o): str(getattr(o, of)) for o in outcomes if o.status == "succeeded"}
    votes = [Vote(str(at), names[claim.source], claim.text) for at, claims in enumerate(fields) for claim in claims]
    return Trust(of, names, estimate_weights(votes), Counter(vote.agent for vote in select_informative_votes(votes)))


def make_trust_table(trusts: Iterable[Trust]) -> Table:
    """Return the sources and their weights as a table of the report."""
    return Table(
        name="trust",
        title="How far each source is trusted",
        rows=tuple(row for each in trusts for row in each.rows()),
        note=(
            "The weight is the share of a source's claims that most sources agree with. Claims counted are those to "
            "fields decided by `trust` on which two sources or more say something and one value has more of them "
            f"than any other; a source without any has the weight {DEFAULT_WEIGHT}."
        ),
    )


Source = Literal["brief", "item", "model"]
"""What the rule `trust` treats as one source."""
