"""How a field is decided where records of one identity say different things: the configuration of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

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
from prefect_dispatch.integrators.records.picking import RULES, Claim, Rank, RuleFunction, newest
from prefect_dispatch.references import REFERENCE, refer
from prefect_dispatch.strict import Strict, nearest

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "GATHERING",
    "Claim",
    "Conflicts",
    "FieldPath",
    "FieldRule",
    "OneRule",
    "OptionalPath",
    "Rank",
    "Rule",
    "RuleFunction",
    "RuleName",
    "Rules",
    "Source",
]

RuleName = Literal["priority", "majority", "trust", "newest", "longest", "max", "min", "union", "keep_all"]
Conflicts = Literal["resolve", "keep_all", "flag"]
"""What is done where records disagree."""
Source = Literal["brief", "item", "model"]
"""What `trust` takes for one source."""
GATHERING = frozenset({"union", "keep_all"})
"""The rules whose result holds what several records say."""


def _dotted(value: str) -> str:
    if "" in value.split("."):
        raise ValueError(
            f"{value!r} is no path to a field: write names with a dot between each two, as in 'author.name', "
            "and none at either end"
        )
    return value


_DOTTED = r"[^.]+(\.[^.]+)*"
FieldPath = Annotated[str, AfterValidator(_dotted), Field(json_schema_extra={"pattern": f"^{_DOTTED}$"})]
"""The dotted path of a field."""
OptionalPath = Annotated[
    str,
    AfterValidator(lambda value: value and _dotted(value)),
    Field(json_schema_extra={"pattern": f"^({_DOTTED})?$"}),
]
"""The same, or nothing."""


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
    """`priority`, `majority`, `trust`, `newest`, `longest`, `max`, `min`, `union`, `keep_all`, or a function."""
    by: OptionalPath = ""
    """For `newest`: dotted path of the record's field that tells when."""
    of: Source | None = None
    """For `trust`: whose reliability counts. Empty: the item's if there is one brief, else the brief's."""
    conflicts: Conflicts | None = None
    """What is done where records disagree about this field; empty: the same as for all fields."""

    @model_validator(mode="after")
    def _options_belong_to_their_rule(self) -> Self:
        if (self.rule == "newest") != bool(self.by):
            raise ValueError("the rule 'newest' needs 'by', the field that tells when; no other rule takes it")
        if self.of and self.rule != "trust":
            raise ValueError(f"'of' says whose reliability counts for the rule 'trust'; {self.name!r} doesn't take it")
        if self.conflicts and self.gathers:
            raise ValueError(
                f"the rule {self.name!r} keeps what every record says, so there is nothing for 'conflicts' to decide"
            )
        return self

    @property
    def name(self) -> str:
        """The rule's name, as field rows hold it; a function's is `module:name`."""
        return refer(self.rule)

    @property
    def picks(self) -> bool:
        """Whether the result is always what some record says, as it says it."""
        return isinstance(self.rule, str) and self.rule in get_args(RuleName) and not self.gathers

    @property
    def gathers(self) -> bool:
        """Whether the result holds what several records say."""
        return isinstance(self.rule, str) and self.rule in GATHERING

    def decide(self, claims: Sequence[Claim]) -> JsonValue:
        """Return what is to stand where the claims compete; `trust`, without knowledge of sources, is `majority`.

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

    field: FieldPath = Field(json_schema_extra={"position": -1})  # ahead of what is inherited
    """The field's name, or the dotted path of a field inside an object or inside the elements of a list."""
    identity: tuple[FieldPath, ...] = ()
    """For a list of objects under `union` or `keep_all`: the fields that make two of them the same."""

    @model_validator(mode="after")
    def _identity_belongs_to_a_set(self) -> Self:
        if self.identity and not self.gathers:
            raise ValueError(
                f"'identity' says which elements of a list are the same, for the rules 'union' and 'keep_all'; "
                f"{self.name!r} takes one list as it is"
            )
        return self


_JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)


def _rule(value: object) -> object:
    return cast("object", value) if isinstance(value, (Mapping, Rule)) else {"rule": value}


def _rules(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    named = cast("Mapping[object, object]", value)
    return [{**dict(cast("Mapping[str, object]", _rule(rule))), "field": field} for field, rule in named.items()]


OneRule = Annotated[Rule, BeforeValidator(_rule)]
"""A rule; its name alone is taken, too."""
Rules = Annotated[tuple[FieldRule, ...], BeforeValidator(_rules)]
"""Rules for fields; a mapping from field to rule is taken, too."""
