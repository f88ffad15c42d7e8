"""The rules that decide a field where records of one identity say different things.

Every rule takes the claims to the field and returns what is to stand there. Claims come
without nulls, and in order of preference: higher priority of the brief first, then of the
item, then the record whose JSON text is the smaller one. So a rule that takes the first
of equals breaks every tie by content, never by arrival.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

from pydantic import (
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
from prefect_dispatch.integrators.values import content, get, order
from prefect_dispatch.ledger import Ref  # noqa: TC001 -- a NamedTuple's annotations may be read at run time
from prefect_dispatch.references import REFERENCE, refer
from prefect_dispatch.strict import Strict, nearest

if TYPE_CHECKING:
    from typing_extensions import Self

Rank = tuple[int, int, str, int]


class Claim(NamedTuple):
    """What one record says about a field."""

    value: JsonValue
    """What it says; never null unless every record says so."""
    text: str
    """The same as text: equal for equal values."""
    source: Ref
    """The outcome that the record comes from."""
    record: JsonValue
    """The whole record."""
    rank: Rank
    """Its place in the order of preference, the smallest first."""


RuleFunction = Callable[[Sequence[Claim]], JsonValue]
"""A rule: takes one claim or more in order of preference, returns the JSON value that is to stand."""


def priority(claims: Sequence[Claim]) -> JsonValue:
    """Return what the brief, then the item, of the highest priority says."""
    return claims[0].value


def majority(claims: Sequence[Claim]) -> JsonValue:
    """Return what most outcomes say."""
    voters: dict[str, set[Ref]] = {}
    for claim in claims:
        voters.setdefault(claim.text, set()).add(claim.source)
    return max(claims, key=lambda claim: len(voters[claim.text])).value


def longest(claims: Sequence[Claim]) -> JsonValue:
    """Return the longest text; of a value that is no text its JSON counts."""
    return max(claims, key=lambda claim: len(claim.value if isinstance(claim.value, str) else claim.text)).value


def largest(claims: Sequence[Claim]) -> JsonValue:
    """Return the greatest value: numbers by size, below texts by code point, below the rest by its JSON."""
    return max(claims, key=lambda claim: order(claim.value)).value


def smallest(claims: Sequence[Claim]) -> JsonValue:
    """Return the least value, in the order of `largest`."""
    return min(claims, key=lambda claim: order(claim.value)).value


def union(claims: Sequence[Claim]) -> JsonValue:
    """Return the distinct values, sorted; a list counts as its elements."""
    return sorted(_distinct(claims), key=order)


def keep_all(claims: Sequence[Claim]) -> JsonValue:
    """Return the distinct values in order of preference; a list counts as its elements."""
    return _distinct(claims)


def newest(by: str) -> RuleFunction:
    """Return the rule that takes what the newest record says.

    Args:
        by: Dotted path, in the record, of a date or time (ISO 8601, UTC unless it has an
            offset) or of a number such as a year. Texts that are neither come before all
            dates, in order; records without it count only where none has it.
    """

    def rule(claims: Sequence[Claim]) -> JsonValue:
        return max(claims, key=lambda claim: _moment(get(claim.record, by.split(".")))).value

    return rule


def elements(value: JsonValue) -> list[JsonValue]:
    """Return what a value counts as where values are gathered: a list's elements, or itself."""
    return value if isinstance(value, list) else [value]


RULES: dict[str, RuleFunction] = {
    "priority": priority,
    "majority": majority,
    "longest": longest,
    "max": largest,
    "min": smallest,
    "union": union,
    "keep_all": keep_all,
}
RuleName = Literal["priority", "majority", "newest", "longest", "max", "min", "union", "keep_all"]
GATHERING = frozenset({"union", "keep_all"})
"""The rules whose result holds what several records say."""


def _known(value: object) -> object:
    names = list(get_args(RuleName))
    if value in names or callable(value) or (isinstance(value, str) and REFERENCE.fullmatch(value)):
        return value
    raise ValueError(
        f"must be the name of a rule, a function or 'module:name', not {value!r}; {nearest(str(value), names)}"
    )


class Rule(Strict):
    """How a field is decided.

    Example:
        >>> Rule(rule="newest", by="date").name
        'newest'
    """

    rule: Annotated[
        Any,
        BeforeValidator(_known),
        PlainSerializer(refer, return_type=str),
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
    """`priority`, `majority`, `newest`, `longest`, `max`, `min`, `union`, `keep_all`, or a function (`module:name`)."""
    by: str = ""
    """For `newest`: dotted path of the record's field that tells when."""

    @model_validator(mode="after")
    def _by_belongs_to_newest(self) -> Self:
        if (self.rule == "newest") != bool(self.by):
            raise ValueError("the rule 'newest' needs 'by', the field that tells when; no other rule takes it")
        return self

    @property
    def name(self) -> str:
        """The rule's name, as field rows hold it; a function's is `module:name`."""
        return refer(self.rule)

    @property
    def picks(self) -> bool:
        """Whether the result is always what some record says, as it says it."""
        return isinstance(self.rule, str) and self.rule in get_args(RuleName) and self.rule not in GATHERING

    def decide(self, claims: Sequence[Claim]) -> JsonValue:
        """Return what is to stand where the claims compete.

        Raises:
            JobError: If it is a `module:name` that nobody resolved, or the function's result isn't JSON.
        """
        if not isinstance(self.rule, str):
            return self._computed(claims)
        rule = newest(self.by) if self.by else RULES.get(self.rule)
        if rule is None:
            raise JobError(f"The rule {self.rule!r} is a name only; load the function that it stands for first.")
        return rule(claims)

    def _computed(self, claims: Sequence[Claim]) -> JsonValue:
        # A copy: a function of the user's must not be able to change what was said.
        result = self.rule(deepcopy(list(claims)))
        try:
            return _JSON.validate_python(result)
        except ValidationError:
            raise JobError(
                f"The rule {self.name!r} returned a {type(result).__name__} for a field; it must return a JSON value."
            ) from None


class FieldRule(Rule):
    """How one field is decided."""

    field: str = Field(json_schema_extra={"position": -1})  # ahead of what is inherited
    """The field's name, or the dotted path of a field inside an object."""


_JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)
_WHEN = TypeAdapter(datetime)


def _distinct(claims: Sequence[Claim]) -> list[JsonValue]:
    found: dict[str, JsonValue] = {}
    for claim in claims:
        for element in elements(claim.value):
            found.setdefault(content(element), element)
    return list(found.values())


def _moment(value: JsonValue) -> tuple[int, datetime, str]:
    never = datetime.min.replace(tzinfo=timezone.utc)
    if value is None or isinstance(value, bool):
        return (0, never, "")
    try:
        when = _WHEN.validate_python(value)
    except ValidationError:
        return (1, never, value if isinstance(value, str) else content(value))
    return (2, when if when.tzinfo else when.replace(tzinfo=timezone.utc), "")
