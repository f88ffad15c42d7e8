"""Limits of a run: concurrency, retries, rates, budgets and time."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from prefect_dispatch.models.base import NoneFirst, Strict

if TYPE_CHECKING:
    from typing_extensions import Self

_WORDS = frozenset({"pace_limit", "budget", "on_dependence", "retry_timeouts", "pilot", "gate"})
"""Limits that aren't numbers."""
THRESHOLDS = ("max_usd", "min_success", "max_reask_rate")
"""The fields of a pilot that its gate `auto` compares with."""


class Pilot(Strict):
    """Sample of a run that is answered first: the rest is asked only once its figures are accepted.

    Example:
        >>> Pilot(items=20, gate="auto", min_success=0.9).max_usd is None
        True
    """

    items: int = Field(default=5, ge=1, le=1000, title="Asks of the pilot")
    """How many asks are answered first, each a brief for an item. If there are no more to ask, there is no pilot."""
    gate: Literal["ask", "auto", "report"] = "ask"
    """What follows: a person decides (`ask`), the thresholds decide (`auto`), or the run ends there (`report`)."""
    max_usd: float | None = Field(default=None, ge=0, allow_inf_nan=False, title="Highest projected bill in US dollars")
    """For `auto`: what the whole run may cost by the projection, which counts with the upper end of its interval."""
    min_success: float | None = Field(default=None, ge=0, le=1, title="Share of the pilot that must succeed")
    """For `auto`: the share of the pilot that must have a valid answer."""
    max_reask_rate: float | None = Field(default=None, ge=0, le=1, title="Highest share of re-asked answers")
    """For `auto`: the share of the pilot that may need a re-ask."""

    @field_validator("*", mode="before")
    @classmethod
    def _is_number(cls, value: object, info: ValidationInfo) -> object:
        return value if info.field_name in _WORDS else _number(value)

    @model_validator(mode="after")
    def _has_thresholds(self) -> Self:
        given = [name for name in THRESHOLDS if getattr(self, name) is not None]
        if self.gate == "auto" and not given:
            raise PydanticCustomError("pilot", "gate auto needs a threshold: {names}", {"names": ", ".join(THRESHOLDS)})
        if self.gate != "auto" and given:
            raise PydanticCustomError(
                "pilot", "{name} is for gate auto, and gate is {gate}", {"name": given[0], "gate": self.gate}
            )
        return self


OptionalPilot = Annotated[Pilot | None, NoneFirst()]
"""A pilot or none; in a form two tabs."""


class Limits(Strict):
    """Limits of a run: concurrency, retries, rates, budgets and time."""

    concurrency: int = Field(default=8, ge=1, le=10_000)
    """How many asks are under way at once."""
    shard: int | None = Field(default=None, ge=1, le=10_000, title="Items per task run")
    """Number of items per task run. Empty: one for up to 200 asks; beyond that at least 50, and enough for at most 400
    task runs. In other processes it is chosen so that each process has work, and all of its slots are in use."""
    retries: int = Field(default=2, ge=0, le=20)
    """New attempts after a transient error."""
    retry_delay_s: float = Field(default=1.0, ge=0, le=3600, title="Retry delay in seconds")
    """Seconds before the first retry; each further one waits twice as long, give or take half."""
    reasks: int = Field(default=2, ge=0, le=10)
    """How often an invalid answer is sent back within one attempt."""
    timeout_s: float = Field(default=120.0, gt=0, le=86400, title="Time limit in seconds")
    """Seconds after which one attempt is ended; waits don't count."""
    retry_timeouts: bool = Field(default=True, title="Retry after the time limit")
    """Whether an attempt that the time limit ended is tried again, as other transient errors are."""
    wait_s: float = Field(default=900.0, ge=0, le=604_800, title="Time to wait for a busy provider in seconds")
    """Seconds that one attempt waits in all for a busy provider (429, overloaded).
    After that there is no other attempt: the item has failed, or is skipped if nothing was sent for it."""
    requests_per_minute: int | None = Field(default=None, ge=1, title="Requests per minute")
    """What the provider allows for each model. Empty: it is learned from what the provider refuses."""
    tokens_per_minute: int | None = Field(default=None, ge=1, title="Tokens per minute")
    """What the provider allows for each model, sent and received. Empty: it is learned."""
    pace_limit: str | None = Field(default=None, min_length=1, title="Shared pace")
    """A Prefect concurrency limit that runs share: each takes `concurrency` of its slots, and that share of rates."""
    budget_usd: float | None = Field(default=None, ge=0, allow_inf_nan=False, title="Budget in US dollars")
    """What the run may spend, its integrator included; no call is sent that could exceed it. Empty: no cap."""
    budget_tokens: int | None = Field(default=None, ge=0, title="Budget in tokens")
    """The same for tokens, sent and received."""
    budget_requests: int | None = Field(default=None, ge=0, title="Budget in requests")
    """The same for requests, retries and re-asks included."""
    budget: str | None = Field(default=None, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", title="Shared budget")
    """The name of a `DispatchBudget` block: US dollars per day, week or month that runs, jobs and machines share. A run
    reserves what its calls may take before it sends them, and gives back what it did not spend."""
    circuit: int = Field(default=10, ge=2, le=100_000, title="Equal failures in a row that stop the run")
    """How many items may fail one after another with the same error; after that the rest is not asked."""
    grace_s: float = Field(default=5.0, ge=0, le=600, title="Grace in seconds")
    """Seconds that calls in flight have to finish when the run is interrupted or cancelled."""
    min_success: float = Field(default=0.0, ge=0, le=1)
    """The share of (brief, item) pairs that must succeed; below it the run fails. If none succeeds, it always fails."""
    review_s: float = Field(default=604_800.0, gt=0, le=31_536_000, title="Time for a review in seconds")
    """Seconds that a run of a deployment waits for the decisions of its review; after that Prefect marks it as Failed,
    and it publishes nothing. 604800 are a week."""
    on_dependence: Literal["refuse", "serialize", "merge"] = Field(default="refuse")
    """What happens to work that isn't independent: the job is refused, that work runs one after another, or, for
    coding agents that write the same files in checkouts of their own, their changes are merged."""
    pilot: OptionalPilot = Field(default=None, title="Pilot")
    """A sample that is answered first, before the rest is paid for. Empty: none."""

    @field_validator("*", mode="before")
    @classmethod
    def _is_number(cls, value: object, info: ValidationInfo) -> object:
        return value if info.field_name in _WORDS else _number(value)


def _number(value: object) -> object:
    """Return the number in a text, such as `1e6`, which YAML reads as text; anything else unchanged.

    Raises:
        PydanticCustomError: If it is true or false, or a text that is no number; the message says what to write.

    Example:
        >>> _number("1e6"), _number("12"), _number(2.5)
        (1000000.0, '12', 2.5)
    """
    if isinstance(value, bool):
        raise _no_number("true and false are none")
    if not isinstance(value, str) or value.isdecimal():
        return value
    try:
        return float(value)
    except ValueError:
        comma = re.fullmatch(r"\s*(\d+),(\d+)\s*", value)
        way_out = f"write {comma[1]}.{comma[2]}" if comma else "write its digits, without a unit"
        raise _no_number(way_out) from None


def _no_number(way_out: str) -> PydanticCustomError:
    return PydanticCustomError("number", "must be a number; {way_out}", {"way_out": way_out})
