"""Options of a cascade: a cheap model is asked first, and decides by its answers when the strong one is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field, NonNegativeFloat, StringConstraints, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from prefect_dispatch.errors import TerminalError
from prefect_dispatch.executors.block_references import Credentials
from prefect_dispatch.executors.llm.messages import Address, Params, is_deterministic
from prefect_dispatch.models.base import NoneFirst, Strict
from prefect_dispatch.models.brief import Text
from prefect_dispatch.models.cascade_decision import CascadeRule
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.security.escaping import shorten
from prefect_dispatch.serialization.json_values import content_text, get_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue
    from typing_extensions import Self

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models.brief import Brief

Path = Annotated[str, StringConstraints(pattern=r"^[^.\s]+(\.[^.\s]+)*$", max_length=200)]
"""The dotted path of a field of an answer."""


class Learn(Strict):
    """How the rule of a cascade is learned: from items that both models answer first.

    Example:
        >>> Learn(items=100, target=0.95).least_items
        59
    """

    items: int = Field(default=100, ge=1, le=10_000, strict=True, title="Items that both answer")
    """How many items both models answer. They are chosen by the hash of their work, so they are always the same."""
    target: float = Field(default=0.95, gt=0, lt=1, strict=True, title="Target agreement")
    """The share of all answers of a run that are to be those of the strong model."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1, strict=True, title="Confidence")
    """The probability with which the learned rule keeps the target."""

    @property
    def least_items(self) -> int:
        """The fewest items with which a rule can keep the target: with fewer, not even full agreement proves it."""
        return math.ceil(math.log(1 - self.confidence) / math.log(self.target))

    @model_validator(mode="after")
    def _can_be_learned(self) -> Self:
        if self.items < self.least_items:
            raise PydanticCustomError(
                "learn",
                "items is {items}, and a target of {target} with a confidence of {confidence} takes at least {least}",
                {
                    "items": self.items,
                    "target": self.target,
                    "confidence": self.confidence,
                    "least": self.least_items,
                },
            )
        return self


class Cascade(Strict):
    """A cheap model that is asked before the executor's own, the strong one; each option is a condition.

    An answer of the cheap model counts if it is valid, and meets every condition that is set. Else the strong model is
    asked.

    Example:
        >>> print(Cascade(cheap="openai/gpt-5-nano", samples=2).rule_of_options)
        answers of the cheap model count if two samples agree
    """

    cheap: Text
    """The model that is asked first."""
    samples: int = Field(default=1, ge=1, le=2, strict=True)
    """`2`: the cheap model is asked twice, and the strong one where the answers differ."""
    compare: tuple[Path, ...] = ()
    """The fields of an answer that are compared; where an answer has prose, those without it. Empty: all of it."""
    confidence: Annotated[Path, Field(title="Field")] | None = None
    """The field of an answer in which the model states its confidence, a number from 0 to 1."""
    min_confidence: Annotated[float, Field(title="Number", ge=0, le=1, strict=True)] | None = Field(
        default=None, title="Lowest confidence"
    )
    """The confidence below which the strong model is asked."""
    learn: Annotated[Learn | None, NoneFirst()] = None
    """Learn from items that both models answer which conditions are needed. None: the conditions are those above."""
    api_base: Address | None = Field(default=None, title="API base")
    """The address of the cheap model's server. None: that of the strong one, if it is of the same provider."""
    credentials: Credentials | None = None
    """The block with the cheap model's key. None: that of the strong one, if it is of the same provider."""
    params: Params | None = None
    """Parameters of the cheap model's calls. None: those of the strong one."""
    usd_per_million: Annotated[tuple[NonNegativeFloat, NonNegativeFloat], Field(title="Prices")] | None = Field(
        default=None, title="US dollars per million tokens"
    )
    """The cheap model's price: US dollars per million tokens sent, and received. None: litellm's table."""
    rule: SkipJsonSchema[CascadeRule | None] = None
    """The learned rule; set while a job with `learn` runs."""

    @model_validator(mode="after")
    def _has_no_contradiction(self) -> Self:
        if self.min_confidence is not None and self.confidence is None:
            raise _contradiction("min_confidence needs 'confidence', the field in which the model states it")
        if self.learn and self.min_confidence is not None:
            raise _contradiction("min_confidence and 'learn' exclude each other: 'learn' finds the lowest confidence")
        if self.confidence and self.min_confidence is None and not self.learn:
            raise _contradiction("confidence decides nothing by itself: set 'min_confidence', or 'learn' it")
        if self.compare and self.samples == 1 and not self.learn:
            raise _contradiction("compare is for two samples, or for 'learn': set samples to 2, or leave it out")
        return self

    @property
    def rule_of_options(self) -> CascadeRule:
        """The rule that its options state."""
        return CascadeRule(accept="agreeing" if self.samples > 1 else "valid", min_confidence=self.min_confidence)

    @property
    def current_rule(self) -> CascadeRule:
        """The rule that decides now: the learned one, or that of its options.

        Raises:
            TerminalError: If the rule is learned, and was not yet.
        """
        if not self.learn:
            return self.rule_of_options
        if self.rule is None:
            message = "executor.cascade.learn: a rule is learned by whole runs, of `dispatch` and the ready flows."
            raise TerminalError(message, kind="cascade", usage=Usage())
        return self.rule

    @property
    def candidate_rules(self) -> list[CascadeRule]:
        """The rules that may be learned, the strictest first; what one accepts, all that follow accept, too."""
        accepts: list[Literal["agreeing", "valid"]] = ["agreeing"] if self.samples > 1 else []
        steps = [each / CONFIDENCE_STEPS for each in range(CONFIDENCE_STEPS, 0, -1)] if self.confidence else []
        levels = [
            CascadeRule(accept=accepts[0] if accepts else "valid", min_confidence=least) for least in (*steps, None)
        ]
        return [*levels, CascadeRule(accept="valid")] if accepts else levels

    def identity(self, api_base: str | None, params: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Return what of it can change an answer, beside the models.

        Args:
            api_base: The address of the cheap model's server.
            params: The parameters of its calls.
        """
        counted = self.model_dump(mode="json", include={"samples", "compare", "confidence", "min_confidence", "learn"})
        return {**counted, "api_base": api_base, "params": params}

    def stated_confidence(self, value: JsonValue) -> float | None:
        """Return the confidence that an answer states; None if it states none, or no number from 0 to 1.

        Example:
            >>> asking = Cascade(cheap="openai/gpt-5-nano", confidence="sure", min_confidence=0.5)
            >>> asking.stated_confidence({"sure": 0.9}), asking.stated_confidence({"sure": 90})
            (0.9, None)
        """
        found = get_at(value, self.confidence.split(".")) if self.confidence else None
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found <= 1:
            return None
        return float(found)

    def difference(self, one: JsonValue, other: JsonValue) -> str | None:
        """Return where two answers differ, in words; None if they agree. What is stated as confidence never counts.

        Example:
            >>> asking = Cascade(cheap="openai/gpt-5-nano", samples=2, compare=("verdict",))
            >>> asking.difference({"verdict": "yes", "why": "A."}, {"verdict": "yes", "why": "B."})
            >>> asking.difference({"verdict": "yes"}, {"verdict": "no"})
            "in 'verdict'"
        """
        named = [(path, get_at(one, path.split(".")), get_at(other, path.split("."))) for path in self.compare]
        for name, left, right in named or _fields_of(one, other):
            if name != self.confidence and content_text(left) != content_text(right):
                return f"in {shorten(name, MAX_NAME)!r}" if name else "in what they say"
        return None


MAX_NAME = 60
"""Characters of a field's name in a reason, at most: an answer may choose it."""
CONFIDENCE_STEPS = 20
"""Number of steps in which a lowest confidence is learned: by 0.05."""


def _fields_of(one: JsonValue, other: JsonValue) -> list[tuple[str, JsonValue, JsonValue]]:
    """Return the fields of two answers, each with its name and both values; of what is no object, the whole."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [(name, one.get(name), other.get(name)) for name in sorted({*one, *other})]
    return [("", one, other)]


def _contradiction(message: str) -> PydanticCustomError:
    return PydanticCustomError("cascade", "{message}", {"message": message})


def from_pair(data: object) -> object:
    """Return the data of an executor whose cascade is a pair of models, `[cheap, strong]`, with both as own keys.

    Raises:
        PydanticCustomError: If it is no pair, or `model` names another strong model.

    Example:
        >>> from_pair({"cascade": ["openai/gpt-5-nano", "openai/gpt-5"]})
        {'cascade': {'cheap': 'openai/gpt-5-nano'}, 'model': 'openai/gpt-5'}
    """
    if not isinstance(data, Mapping):
        return data
    keys = cast("Mapping[str, Any]", data)
    pair = keys.get("cascade")
    if not isinstance(pair, (list, tuple)):
        return keys
    given = dict(keys)
    models = cast("Sequence[object]", pair)
    if len(models) != 2:  # noqa: PLR2004 -- a pair
        raise _contradiction("cascade: a list has two models, [cheap, strong]")
    cheap, strong = models
    if given.setdefault("model", strong) != strong:
        raise _contradiction(f"cascade names {strong!r} as the strong model, and model is {given['model']!r}")
    return {**given, "cascade": {"cheap": cheap}}


def cascade_of(executor: Executor) -> Cascade | None:
    """Return the options of an executor's cascade, whose cheap model is the first of its fallback chain.

    Returns:
        None for an executor without one.
    """
    options = getattr(executor, "cascade", None)
    return options if isinstance(options, Cascade) else None


def contradiction_of(
    cascade: Cascade, *, others: Sequence[str], mode: str, searches: bool, params: Mapping[str, JsonValue]
) -> str | None:
    """Return what of an executor contradicts its cascade, and the way out; None if nothing does.

    Args:
        cascade: The cascade.
        others: The strong model and its fallbacks.
        mode: How requests are sent, `live` or `batch`.
        searches: Whether the models search the web.
        params: The parameters of the cheap model's calls.
    """
    if cascade.cheap in others:
        return (
            f"cascade.cheap is {cascade.cheap!r}, which is also asked as the strong model or a fallback: name another"
        )
    if mode == "batch":
        return "cascade: with mode: batch all requests are sent at once; set mode to live, or leave the cascade out"
    if searches:
        return "cascade: with web_search two answers rest on different pages; leave one of them out"
    if cascade.samples > 1 and is_deterministic(cascade.cheap, params):
        return (
            "cascade.samples is 2, and at temperature 0 a model says the same each time: set "
            "cascade.params.temperature (to 0.7, say), or samples to 1"
        )
    if cascade.samples > 1 and "seed" in params:
        return (
            "cascade.samples is 2, and with a seed a model says the same each time: leave 'seed' out of cascade.params"
        )
    return None


def own_model_problem(cascade: Cascade, briefs: Sequence[Brief]) -> str | None:
    """Return the problem of a brief that names a model of its own beside a cascade; None if there is none."""
    named = next((brief for brief in briefs if brief.model), None)
    if named is None:
        return None
    return (
        f"Brief {named.name!r} names a model of its own ({named.model!r}), and executor.cascade names "
        f"{cascade.cheap!r} and a strong one; leave one of them out."
    )
