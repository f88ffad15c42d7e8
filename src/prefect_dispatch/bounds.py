"""Can the limits be held with this executor? Found out before anything is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import Ask, Metered, Tiered
from prefect_dispatch.executors.variety import executor_for
from prefect_dispatch.models import Item

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.executors.base import Ceiling, Executor
    from prefect_dispatch.limits import Limits
    from prefect_dispatch.models import Brief


_INSTEAD = {
    "budget_usd": "budget_requests",
    "budget_tokens": "budget_requests",
    "tokens_per_minute": "requests_per_minute",
}
"""What counts tokens, and what bounds the same run without counting them."""


def require_bounded(limits: Limits, executor: Executor, briefs: Sequence[Brief]) -> None:
    """Check that every cap can be held for every call; nobody is asked for it.

    Args:
        limits: What bounds the run.
        executor: Who is asked.
        briefs: What is asked.

    Raises:
        JobError: If one can't be held, with the way out.
    """
    item = Item(key="any", value="")
    for brief in briefs:
        who = executor_for(brief, executor)
        for tier in who.tiers if isinstance(who, Tiered) else (who,):
            if reason := unbounded(limits, name_of(tier), ceiling_of(limits, tier, Ask(brief=brief, item=item))):
                raise JobError(reason)


def name_of(executor: Executor) -> str:
    """Return who is asked: what shares a name shares a pace."""
    return executor.name if isinstance(executor, Metered) else type(executor).__name__


def ceiling_of(limits: Limits, executor: Executor, ask: Ask) -> Ceiling | None:
    """Return the most that a call can take; None if nobody can say, or no limit needs it."""
    if any(getattr(limits, key) is not None for key in _INSTEAD) and isinstance(executor, Metered):
        return executor.ceiling(ask)
    return None


def unbounded(limits: Limits, name: str, ceiling: Ceiling | None) -> str | None:
    """Return which limit can't be held for a call, and the way out; None if all can be."""
    held = [key for key in _INSTEAD if getattr(limits, key) is not None]
    caps = [key for key in held if key.startswith("budget")]
    if ceiling is None and held:
        why = f"{name!r} doesn't say beforehand what a call takes; set limits.{_INSTEAD[held[0]]} in its place"
    elif ceiling and ceiling.instead:
        return _unbounded_run(held, name, ceiling)
    elif ceiling and ceiling.completion_tokens is None and caps:
        why = f"nothing bounds the answers of {name!r}; set max_tokens among its params"
    elif ceiling and ceiling.cost_usd is None and limits.budget_usd is not None:
        why = f"the price of {name!r} is unknown; give it usd_per_million, or set limits.budget_tokens in its place"
    else:
        return None
    return f"limits.{(caps or held)[0]} can't be held: {why}."


def _unbounded_run(held: Sequence[str], name: str, ceiling: Ceiling) -> str | None:
    """Return the same for a call that is a whole run of a program: only what it costs can be bounded."""
    if tokens := next((key for key in held if key != "budget_usd"), None):
        return (
            f"limits.{tokens} can't be held: {name!r} doesn't say beforehand how many tokens a run takes; "
            f"set limits.{_INSTEAD[tokens]} in its place."
        )
    if held and ceiling.cost_usd is None:
        return (
            f"limits.budget_usd can't be held: nothing bounds what a run of {name!r} costs; {ceiling.instead}, or "
            "limits.budget_requests in place of the budget."
        )
    return None
