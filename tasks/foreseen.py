"""What a plan's figures mean beside the limits of its job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.executors.coding.executor import CodingAgent
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
    notes = (*_agents(plan, executor, limits), *_caps(plan, limits), *_batches(plan, executor))
    return plan.model_copy(update={"notes": notes})


def _agents(plan: Plan, executor: Executor, limits: Limits) -> Iterator[str]:
    """Yield who works, and the most that it may cost: of an agent's run nothing else is known beforehand."""
    if not isinstance(executor, CodingAgent) or not plan.to_ask:
        return
    runs = "1 run" if plan.to_ask == 1 else f"{plan.to_ask} runs, {limits.concurrency} at once"
    told = f"{executor.name}: {runs} of {limits.timeout_s:g} s at most"
    if executor.max_usd is None:
        yield f"{told}; nothing bounds what a run costs: set max_usd."
        return
    most = executor.max_usd * plan.to_ask
    yield f"{told}, and of {executor.max_usd:g} USD: {most:g} USD in all, retries and re-asks apart."
    if limits.budget_usd and limits.budget_usd < most:
        yield f"limits.budget_usd is {limits.budget_usd:g}, which may be less than that takes: {_REST}."


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
