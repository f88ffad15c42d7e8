"""Configuration of how fields are merged: rules, conflict policies, and the rulebook that selects a rule by path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
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
from prefect_dispatch.integrators.merge_records.resolution import (
    RULES,
    Claim,
    Rank,
    RuleFunction,
    Source,
    make_newest_rule,
)
from prefect_dispatch.models.base import Strict, did_you_mean
from prefect_dispatch.models.imports import REFERENCE, to_reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from prefect_dispatch.integrators.merge_records.resolution import Trust


__all__ = [
    "COLLECTING_RULES",
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
