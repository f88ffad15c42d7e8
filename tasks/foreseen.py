"""What a plan's figures mean beside the limits of its job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.executors.llm import LLM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.limits import Limits
    from prefect_dispatch.tasks.plan import Plan

_REST = "what a cap doesn't hold is skipped, and the next run goes on there"


def with_notes(plan: Plan, executor: Executor, limits: Limits) -> Plan:
    """Return a plan that says what its job's caps will stop, and what else is to be reckoned with.

    Args:
        plan: The plan, the integrator's share included.
        executor: Who answers.
        limits: How the run is bounded.
    """
    return plan.model_copy(update={"notes": (*_caps(plan, limits), *_batches(plan, executor))})


def _caps(plan: Plan, limits: Limits) -> Iterator[str]:
    """Yield a sentence for each cap that won't hold what is planned."""
    tokens = None if plan.prompt_tokens is None else plan.prompt_tokens + (plan.completion_tokens or 0)
    caps = (
        ("requests", limits.budget_requests, plan.to_ask, f"{plan.to_ask} asks"),
        ("tokens", limits.budget_tokens, tokens, f"about {tokens} tokens"),
        ("usd", limits.budget_usd, plan.cost_usd, f"about {plan.cost_usd} USD"),
    )
    for key, cap, planned, told in caps:
        if cap is None or not plan.to_ask:
            continue
        if cap == 0:
            yield f"limits.budget_{key} is 0, so nobody is asked; raise it, or leave it out."
        elif planned is not None and planned > cap:
            yield f"limits.budget_{key} is {cap}, and {told} are planned: {_REST}."


def _batches(plan: Plan, executor: Executor) -> Iterator[str]:
    """Yield what a batch leaves to be asked live, and by whom."""
    if not isinstance(executor, LLM) or executor.mode != "batch" or not plan.to_ask:
        return
    live = [f"executor.fallbacks ({', '.join(executor.fallbacks)}) are asked"] if executor.fallbacks else []
    live += [f"executor.idle_s ({executor.idle_s:g}) holds"] if executor.idle_s is not None else []
    only = f" {' and '.join(live)} only there." if live else ""
    yield f"mode: batch: within a day, whatever the times above; what fails in a batch is asked live.{only}"
