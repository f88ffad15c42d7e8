"""Rules by which fields are merged: their configuration, and the built-in rules that resolve conflicts.

A rule decides between claims of records to the value of a field. Claims hold no nulls, and come in order of preference:
higher priority of the brief first, then of the item, then the record with the smaller JSON text. A rule that takes the
first of equals thus breaks every tie by content, never by order of arrival.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from prefect_dispatch.errors import JobError
from prefect_dispatch.models.base import Strict, did_you_mean
from prefect_dispatch.models.imports import REFERENCE, to_reference
from prefect_dispatch.models.ledger import FieldRow, Flag, Loser, Ref
from prefect_dispatch.serialization.json_text import digest
from prefect_dispatch.serialization.json_values import content_text, get_at, value_order

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self


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
    voter: str = ""
    """Name of the voter, for a vote."""


RuleFunction = Callable[[Sequence[Claim]], JsonValue]
"""A rule: takes one claim or more in order of preference, and returns the JSON value of the merged field."""
_WHEN = TypeAdapter(datetime)
_YEAR = re.compile(r"([0-9]{4})(?:-([0-9]{2}))?")
_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?")
MONTHS = 12
_IS_TIME = 2
"""First part of the sort key of what is a time."""


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
    """Return the largest value, in the order of `make_size_key`."""
    size = make_size_key([claim.value for claim in claims])
    return max(claims, key=lambda claim: size(claim.value)).value


def smallest(claims: Sequence[Claim]) -> JsonValue:
    """Return the smallest value, in the order of `make_size_key`."""
    size = make_size_key([claim.value for claim in claims])
    return min(claims, key=lambda claim: size(claim.value)).value


def make_size_key(values: Sequence[JsonValue]) -> Callable[[JsonValue], Any]:
    """Return the sort key by which `max` and `min` compare values.

    Texts are often numbers or dates, whose order by code point is another one: "9" comes after "10", and
    "2024-05-01T01:00+02:00" after "2024-04-30T23:30Z". So, if all values are texts of dates or times (ISO 8601, or a
    year, or a year and month), they go by time. Else numbers come first, by size, be they numbers or texts of digits
    with a decimal point or without; then other texts by code point; then the rest by its JSON.

    Example:
        >>> sorted(["9", 10, "n/a", "10.5"], key=make_size_key(["9", 10, "n/a", "10.5"]))
        ['9', 10, '10.5', 'n/a']
    """
    texts = [value for value in values if isinstance(value, str)]
    if (
        len(texts) == len(values)
        and not all(map(_NUMBER.fullmatch, texts))
        and all(time_sort_key(text)[0] == _IS_TIME for text in texts)
    ):
        return time_sort_key
    return _order_by_size


def _order_by_size(value: JsonValue) -> tuple[Any, ...]:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return (0, Decimal(value), "")
    order = value_order(value)
    # A float is the number that its text says: 0.1 and "0.1" are equal.
    return (0, Decimal(repr(value) if isinstance(value, float) else order[1]), "") if order[0] == 0 else order


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
        return max(claims, key=lambda claim: time_sort_key(get_at(claim.record, by.split(".")))).value

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


def time_sort_key(value: JsonValue) -> tuple[int, datetime, str]:
    """Return the sort key of a point in time: missing values first, then other texts, then dates."""
    never = datetime.min.replace(tzinfo=timezone.utc)
    if value is None or isinstance(value, bool):
        return (0, never, "")
    # A year, or a year and month, is the first day of it.
    if (year := _YEAR.fullmatch(str(value))) and 1 <= int(year[2] or 1) <= MONTHS and int(year[1]):
        return (_IS_TIME, datetime(int(year[1]), int(year[2] or 1), 1, tzinfo=timezone.utc), "")
    try:
        when = _WHEN.validate_python(value)
    except ValidationError:
        return (1, never, value if isinstance(value, str) else content_text(value))
    return (_IS_TIME, when if when.tzinfo else when.replace(tzinfo=timezone.utc), "")


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
        row = FieldRow(path=path, winner=self.winner, rule=self.rule, sources=sources_of(self.backers))
        if not self.losers:  # a row takes half the memory if `losers` is not set
            return row
        removed: dict[str, list[Claim]] = {}
        for claim in self.losers:
            removed.setdefault(claim.text, []).append(claim)
        losers = tuple(Loser(value=claims[0].value, sources=sources_of(claims)) for claims in removed.values())
        return row.model_copy(update={"losers": losers})

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


RuleName = Literal["priority", "majority", "trust", "newest", "longest", "max", "min", "union", "keep_all"]
Source = Literal["brief", "item", "model"]
"""What the rule `trust` treats as one source."""
Conflicts = Literal["resolve", "keep_all", "flag"]
"""Policy for fields on which records disagree."""
COLLECTING_RULES = frozenset({"union", "keep_all"})
"""The rules that collect the values of several records."""


def _validate_path(value: str) -> str:
    if "" in value.split("."):
        raise ValueError(
            f"{value!r} is no path to a field: write names with a dot between each two, as in 'author.name', "
            "and none at either end"
        )
    return value


_DOTTED = r"[^.]+(\.[^.]+)*"
FieldPath = Annotated[str, AfterValidator(_validate_path), Field(json_schema_extra={"pattern": f"^{_DOTTED}$"})]
"""The dotted path of a field."""
OptionalPath = Annotated[
    str,
    AfterValidator(lambda value: value and _validate_path(value)),
    Field(json_schema_extra={"pattern": f"^({_DOTTED})?$"}),
]
"""The dotted path of a field, or an empty text."""


def _validate_rule(value: object) -> object:
    names = list(get_args(RuleName))
    if value in names or callable(value) or (isinstance(value, str) and REFERENCE.fullmatch(value)):
        return value
    raise ValueError(
        f"must be the name of a rule, a function or 'module:name', not {value!r}; {did_you_mean(str(value), names)}"
    )


class Rule(Strict):
    """Rule for the value of a merged field.

    Example:
        >>> Rule(rule="newest", by="date").name
        'newest'
    """

    rule: Annotated[
        Any,
        BeforeValidator(_validate_rule),
        PlainSerializer(to_reference, return_type=str),
        WithJsonSchema(
            {
                "anyOf": [
                    {"title": "Built-in", "type": "string", "enum": list(get_args(RuleName))},
                    {"title": "Your own", "type": "string", "pattern": f"^{REFERENCE.pattern}$"},
                ],
                "default": "priority",
            }
        ),
    ] = "priority"
    """`priority`, `majority`, `trust`, `newest`, `longest`, `max`, `min`, `union`, `keep_all`, or a function."""
    by: OptionalPath = ""
    """For `newest`: dotted path of the field with the record's date or time."""
    of: Source | None = None
    """For `trust`: whose reliability counts. Empty: the item's if there is one brief, else the brief's."""
    conflicts: Conflicts | None = None
    """Policy for records that disagree about this field; empty: the same as for all fields."""

    @model_validator(mode="after")
    def _options_belong_to_their_rule(self) -> Self:
        if (self.rule == "newest") != bool(self.by):
            raise ValueError("the rule 'newest' needs 'by', the field with the date; no other rule takes it")
        if self.of and self.rule != "trust":
            raise ValueError(f"'of' says whose reliability counts for the rule 'trust'; {self.name!r} doesn't take it")
        if self.conflicts and self.collects_values:
            raise ValueError(
                f"the rule {self.name!r} keeps what every record says, so there is nothing for 'conflicts' to decide"
            )
        return self

    @property
    def name(self) -> str:
        """The rule's name, as field rows have it; `module:name` for a function."""
        return to_reference(self.rule)

    @property
    def picks_value(self) -> bool:
        """Whether the result is always the unchanged value of some record."""
        return isinstance(self.rule, str) and self.rule in get_args(RuleName) and not self.collects_values

    @property
    def collects_values(self) -> bool:
        """Whether the result collects the values of several records."""
        return isinstance(self.rule, str) and self.rule in COLLECTING_RULES

    def decide(self, claims: Sequence[Claim]) -> JsonValue:
        """Return the value that the rule selects or computes from claims; `trust` without weights is `majority`.

        Raises:
            JobError: If the rule is a `module:name` that was not resolved, or a function's result is not JSON.
        """
        if not isinstance(self.rule, str):
            return self._call_function(claims)
        rule = make_newest_rule(self.by) if self.by else RULES.get(self.rule)
        if rule is None:
            raise JobError(f"The rule {self.rule!r} is a name only; load the function that it stands for first.")
        return rule(claims)

    def _call_function(self, claims: Sequence[Claim]) -> JsonValue:
        # A copy, so that a user's function cannot change the claims.
        result = self.rule(deepcopy(list(claims)))
        try:
            return _JSON.validate_python(result)
        except ValidationError:
            raise JobError(
                f"The rule {self.name!r} returned a {type(result).__name__} for a field; it must return a JSON value."
            ) from None


class FieldRule(Rule):
    """Rule for the value of one named field."""

    field: FieldPath = Field(json_schema_extra={"position": -1})  # shown before the inherited fields
    """The field's name, or the dotted path of a field inside an object or inside the elements of a list."""
    identity: tuple[FieldPath, ...] = ()
    """For a list of objects under `union` or `keep_all`: the fields that identify an object."""

    @model_validator(mode="after")
    def _identity_belongs_to_a_set(self) -> Self:
        if self.identity and not self.collects_values:
            raise ValueError(
                f"'identity' says which elements of a list are the same, for the rules 'union' and 'keep_all'; "
                f"{self.name!r} takes one list as it is"
            )
        return self


_JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)


def _coerce_rule(value: object) -> object:
    return cast("object", value) if isinstance(value, (Mapping, Rule)) else {"rule": value}


def _coerce_rules(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    rules = cast("Mapping[object, object]", value)
    return [{**dict(cast("Mapping[str, object]", _coerce_rule(rule))), "field": field} for field, rule in rules.items()]


OneRule = Annotated[Rule, BeforeValidator(_coerce_rule)]
"""A rule; its name alone is accepted, too."""
Rules = Annotated[tuple[FieldRule, ...], BeforeValidator(_coerce_rules)]
"""Rules for fields; a mapping from field to rule is accepted, too."""
Path = tuple[str, ...]
"""The keys that lead from the record to a field; indices of list elements are left out."""


class FieldSettings(NamedTuple):
    """Resolved settings of one field."""

    rule: Rule
    name: str
    """The name of the rule."""
    policy: Conflicts
    """Policy for records that disagree about the field."""
    is_plain: bool
    """Whether the value of a single record is taken unchanged and undivided."""


@dataclass(frozen=True)
class Rulebook:
    """Selects the rule of each field.

    Example:
        >>> largest = FieldRule(field="year", rule="max")
        >>> book = Rulebook({("year",): largest}, default=Rule(rule="longest"), identity=[("name",)])
        >>> [book.settings((field,)).name for field in ("year", "note", "name")]
        ['max', 'longest', 'priority']
    """

    rules: Mapping[Path, FieldRule]
    """Rules by path."""
    default: Rule
    """Rule for fields without a rule of their own or of an enclosing object."""
    identity: Sequence[Path]
    """The fields that identify a record; decided by `priority` unless they have a rule of their own."""
    conflicts: Conflicts = "resolve"
    """Policy for fields on which records disagree, unless a rule has its own."""
    trust: Mapping[Source | None, Trust] = field(default_factory=dict["Source | None", "Trust"])
    """Reliability of the sources, by what `trust` treats as one source."""

    _settings_cache: dict[Path, FieldSettings] = field(
        default_factory=dict["Path", "FieldSettings"], init=False, repr=False, compare=False
    )

    def settings(self, path: Path) -> FieldSettings:
        """Return the settings of a field."""
        if path not in self._settings_cache:  # cached, because it is called for each field of each record
            rule = self._find_rule(path)
            policy = "resolve" if self.affects_identity(path) else rule.conflicts or self.conflicts
            plain = rule.picks_value and not self.element_identity(path) and not self.has_nested_rules(path)
            self._settings_cache[path] = FieldSettings(rule, rule.name, policy, plain)
        return self._settings_cache[path]

    def _find_rule(self, path: Path) -> Rule:
        for length in range(len(path), 0, -1):
            if found := self.rules.get(path[:length]):
                if found.identity and length < len(path):
                    break  # elements with an identity are merged like records, by their own rules
                return found
        return Rule() if self.affects_identity(path) else self.default

    def affects_identity(self, path: Path) -> bool:
        """Return whether changing the field could change the identity of the record or of a list element."""
        return any(
            path[: len(base)] == base and len(path) > len(base) and _paths_overlap(path[len(base) :], other)
            for base, other in self._iter_identity_paths()
        )

    def has_nested_rules(self, path: Path) -> bool:
        """Return whether there is a rule for a part of the field."""
        return any(len(other) > len(path) and other[: len(path)] == path for other in self.rules)

    def element_identity(self, path: Path) -> Sequence[Path]:
        """Return the identity of the elements of a list; empty if the list is merged by content."""
        found = self.rules.get(path)
        return [tuple(name.split(".")) for name in found.identity] if found else ()

    def keeps_type(self, path: Path) -> bool:
        """Return whether the field, with all its parts, always has the unchanged value of some record."""
        parts = [path, *(other for other in self.rules if other[: len(path)] == path)]
        settings = map(self.settings, parts)
        return all(each.rule.picks_value and each.policy != "keep_all" for each in settings)

    def _iter_identity_paths(self) -> Iterator[tuple[Path, Path]]:
        """Yield the identity fields of records, then of list elements, each with the path that it starts from."""
        yield from (((), path) for path in self.identity)
        for base, rule in self.rules.items():
            yield from ((base, tuple(name.split("."))) for name in rule.identity)


def _paths_overlap(one: Path, other: Path) -> bool:
    """Return whether one path starts with the other."""
    return one[: len(other)] == other[: len(one)]


DEFAULT_WEIGHT = 0.5
"""The weight of a source without any informative vote."""


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
        """Return the value with the greatest total weight of its sources.

        Ties go to the higher priority, then by a hash of the sources, so that no value wins by its spelling.
        """
        if all(claim.text == claims[0].text for claim in claims):
            return claims[0].value
        sources: list[JsonValue] = [*sorted({self.names[claim.source] for claim in claims})]
        lots = {name: digest([sources, name]) for name in cast("list[str]", sources)}
        ranked = sorted(claims, key=lambda claim: (claim.rank[:2], lots[self.names[claim.source]]))
        text = select_by_weight([(self.names[claim.source], claim.text) for claim in ranked], self.weights)
        return next(claim.value for claim in claims if claim.text == text)
